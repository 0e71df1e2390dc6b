"""Rebuild the list of runs from their folders if the database is damaged or missing."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from studio.backend.recipe import Recipe
from studio.backend.runs.database import DamagedStore, Database, make_folder
from studio.backend.runs.events import EventLog, figures
from studio.backend.runs.run import logged_ending
from studio.errors import StudioError

# The fields of a run's row that no other file in its folder contains.
RECORD = "run.json"
RECORDED = ("name", "created", "started", "pid", "pid_created", "owner", "shared")
RESTORE = """
INSERT INTO runs (
    id, name, state, model, data, created, started, pid, pid_created, step, best_eval_loss, message, owner, shared
) VALUES (
    :id, :name, :state, :model, :data, :created, :started, :pid, :pid_created, :step, :best_eval_loss, :message,
    :owner, :shared
)
"""


def repair(database: Database, home: Path) -> str:
    """Set a damaged database aside and build a new one from the folders of the runs.

    Returns:
        A sentence about what was done; empty if the database was fine.
    """
    make_folder(database.path.parent)
    with FileLock(database.path.with_suffix(".lock")):
        try:
            with database.open() as db:
                db.execute("SELECT * FROM runs").fetchall()
        except DamagedStore:
            return _rebuild(database, home)
    return ""


def fetch(database: Database, home: Path) -> None:
    """Restore the database of a mounted home on a new local disk: the last copy, plus the runs that it lacks."""
    make_folder(database.path.parent)
    with FileLock(database.path.with_suffix(".lock")):
        if database.path.exists():
            return
        fresh = database.beside()
        if database.copy is not None and database.copy.exists():
            shutil.copyfile(database.copy, fresh.path)
        try:
            with fresh.open() as db:
                known = {row["id"] for row in db.execute("SELECT * FROM runs")}
        except DamagedStore:
            fresh.path.unlink()  # the copy is kept
            known = set()
        _restore(fresh, [row for row in _rows(home) if row["id"] not in known])
        fresh.path.rename(database.path)


def _rebuild(database: Database, home: Path) -> str:
    """Build the new database completely before it replaces the old one, so that running trainers always find one."""
    fresh, rows = database.beside(), _rows(home)
    _restore(fresh, rows)
    aside = f"{database.path.name}.damaged-{uuid.uuid4().hex[:8]}"
    for suffix in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            database.path.with_name(database.path.name + suffix).rename(database.path.with_name(aside + suffix))
    fresh.path.rename(database.path)
    return (
        f"The list of runs was damaged. It has been rebuilt from the folders of {len(rows)} runs, and the damaged "
        f"file is kept as {aside}."
    )


def _restore(database: Database, rows: Sequence[dict[str, Any]]) -> None:
    with database.open() as db:
        db.execute("PRAGMA journal_mode = DELETE")  # a single file can be renamed
        db.executemany(RESTORE, rows)


def _rows(home: Path) -> Sequence[dict[str, Any]]:
    """Return the rows of all runs from their folders, oldest first."""
    found = filter(None, map(row_of_folder, (home / "runs").glob("*/")))
    return sorted(found, key=lambda row: row["created"])


def row_of_folder(folder: Path) -> dict[str, Any] | None:
    """Return a run's row from its folder, or None if the folder holds no run."""
    try:
        recipe, run_id = Recipe.load(folder / "recipe.yaml"), str(uuid.UUID(folder.name))
    except (StudioError, ValueError):
        return None
    record: dict[str, Any] = dict.fromkeys(RECORDED) | {"owner": "", "shared": False}
    record |= {"name": f"{recipe.preset} {run_id[:8]}", "created": folder.stat().st_mtime}
    with suppress(OSError, ValueError):
        record |= json.loads((folder / RECORD).read_text())
    log = EventLog(folder / "events.jsonl")
    # A run with a process may still be running; `reconcile` corrects it if the process is gone.
    state, message = logged_ending(log) or ("running" if record["pid"] else "interrupted", "")
    return record | {
        "id": run_id,
        "model": recipe.model,
        "data": recipe.data,
        "state": state,
        "step": max((event.step for event in log.read()), default=0),
        "best_eval_loss": figures(log.read()).get("best_eval_loss"),
        "message": message,
    }
