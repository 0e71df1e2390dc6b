"""Whether a run that is resumed has the data and the processes that it started with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from studio.backend.runs.run import DATA, Run
from studio.backend.system.files import atomic_write, read_json
from studio.backend.training.prepare import Prepared, processes
from studio.errors import StudioError


def require_same_data(run: Run, prepared: Prepared) -> None:
    """Raise StudioError if the data file or the number of processes has changed since the run started."""
    file, now = run.folder / DATA, prepared.data.report() | {"processes": processes().num_processes}
    then = _read_data(file)
    if then.get("processes", now["processes"]) != now["processes"]:
        raise StudioError(
            f"This run started on {then['processes']} processes and can't be resumed on {now['processes']}: use "
            f"`accelerate launch --num_processes {then['processes']} ... -m studio runs resume {run.id[:8]}`."
        )
    if then.get("fingerprint", now["fingerprint"]) != now["fingerprint"]:
        raise StudioError(
            f"{now['file']} has changed since this run was created, so the run can't use it. Restore the old file, or "
            "start a new run."
        )
    if "processes" not in then:
        atomic_write(file, json.dumps(now))


def _read_data(file: Path) -> dict[str, Any]:
    """Return what is known of the data: its fingerprint when the run is queued, everything once it has started.

    Raises:
        StudioError: the file is damaged.
    """
    if not file.is_file():
        return {}
    known = read_json(file)
    if known is None:
        raise StudioError(f"{file} is damaged, so it is unknown whether the data has changed. Start a new run.")
    return known
