"""Train a toy under random faults, and check that nothing that was reported is lost.

    python -m tests.faults.schedules --seed 1 --count 200

Each schedule starts a server and a run, and injects up to four faults at random moments: signals to the trainer, the
server or both, cancel, resume, delete, a second server, damaged checkpoints, events, run.json, database, upload or
adapter, an upload that is cut, a full disk or a read-only home (as root, on a disk in memory). Then the page must list
the run; the run must be in a true state within 30 seconds, resume from the newest whole checkpoint and say so,
and end with the losses and the adapter of an undisturbed run; no process, and no part of a killed export, may be left.
Prints the schedules that violate this, each with the seed that repeats it, and exits with 1 if there are any.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from transformers.utils import logging

from tests.builders.training import training_settings
from tests.faults.schedules.schedule import STEPS, run_schedule, undisturbed


def main(seed: int, count: int) -> int:
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    kinds, violations, begun = Counter[str](), 0, time.monotonic()
    with TemporaryDirectory() as name:
        folder = Path(name)
        settings = training_settings(folder) | {"max_steps": STEPS, "keep_checkpoints": 2, "log_steps": 1}
        expected = undisturbed(folder / "undisturbed", settings)
        for number in range(seed, seed + count):
            try:
                told = run_schedule(number, folder / str(number), settings, expected)
                kinds.update(each.split(", ")[1].split(":")[0] for each in told if " s, " in each)
            except Exception as error:
                violations += 1
                notes = "\n  ".join(getattr(error, "__notes__", []))
                print(f"seed {number}: {type(error).__name__}: {error}\n  {notes}", flush=True)
    seconds = time.monotonic() - begun
    print(f"Schedules: {count}, faults: {kinds.total()}, violations: {violations}, seconds: {seconds:.0f}")
    print(", ".join(f"{kind} {times}" for kind, times in kinds.most_common()))
    return 1 if violations else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1, help="seed of the first schedule; the next ones count up")
    parser.add_argument("--count", type=int, default=10, help="number of schedules")
    arguments = parser.parse_args()
    sys.exit(main(arguments.seed, arguments.count))
