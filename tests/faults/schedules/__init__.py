"""Random schedules of faults: kills, cancels, full disks and damaged files while a run trains. See `__main__`."""
