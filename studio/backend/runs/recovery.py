"""Rebuild the list of runs from their folders if the database is damaged, missing or lacks some of them."""

from __future__ import annotations

import json
import logging
import math
import shutil
import sqlite3
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, get_args

from filelock import FileLock

from studio.backend.recipe import Recipe
from studio.backend.runs.database import DamagedStore, Database, make_folder, write_ahead
from studio.backend.runs.events import EventLog, figures
from studio.backend.runs.run import Ending, Run, logged_ending
from studio.backend.system.files import atomic_write, unwritable
from studio.errors import StudioError

logger = logging.getLogger(__name__)
# The fields of a run's row that its folder has in a file, with their types.
RECORD = "run.json"
NUMBER = int | float | None
RECORDED: dict[str, Any] = {
    "name": str, "model": str, "data": str, "state": str, "message": str, "created": int | float, "started": NUMBER,
    "ended": NUMBER, "pid": int | None, "pid_created": NUMBER, "queued": int, "cancel_requested": bool, "owner": str,
    "shared": bool, "notes": str,
}  # fmt: skip
STATES = ("queued", "running", *get_args(Ending))
LARGEST = 2**53
COLUMNS = ("id", *RECORDED, "step", "best_eval_loss")
VALUES = ", ".join(f":{name}" for name in COLUMNS)
RESTORE = f"INSERT INTO runs ({', '.join(COLUMNS)}) VALUES ({VALUES})"  # noqa: S608 # nosec B608 - from names above


def record(run: Run) -> None:
    """Write the run's row into its folder.

    Raises:
        StudioError: the folder can't be written.
    """
    if not run.folder_exists:
        return
    try:
        atomic_write(run.folder / RECORD, json.dumps({name: getattr(run, name) for name in RECORDED}))
    except OSError as error:
        raise unwritable(run.folder, error) from error


def repair(database: Database, home: Path) -> str:
    """Set a damaged database aside and build a new one from the folders of the runs; add the runs that it lacks.

    Returns:
        A sentence about what was done; empty if the database was fine.

    Raises:
        StudioError: the folder of the database can't be written.
    """
    with _locked(database):
        if not is_there(database):
            return _fetch(database, home)
        try:
            return _add_missing(database, home)
        except DamagedStore:
            return _rebuild(database, home)


def fetch(database: Database, home: Path) -> str:
    """Build a missing database: the copy of a mounted home, if there is one, and the runs that it lacks.

    The server tells people about it, whatever process noticed that the database was gone: see `take_notice`.
    """
    with _locked(database):
        notice = "" if is_there(database) else _fetch(database, home)
        if notice:
            with suppress(OSError):  # it is in the log
                _notice_file(database).write_text(notice, encoding="utf-8")
        return notice


def take_notice(database: Database) -> str:
    """Return the notice of the last `fetch`, once; "" if there is none."""
    file = _notice_file(database)
    try:
        notice = file.read_text(encoding="utf-8", errors="replace")
        file.unlink()
    except OSError:  # usually there is none
        return ""
    return notice


def _notice_file(database: Database) -> Path:
    return database.path.with_suffix(".notice")


def is_there(database: Database) -> bool:
    """Return whether the database exists. `fetch` renames a complete one, so an empty file is a damaged one."""
    try:
        return database.path.stat().st_size > 0
    except OSError:
        return False


@contextmanager
def _locked(database: Database) -> Iterator[None]:
    make_folder(database.path.parent)
    try:
        lock = FileLock(database.path.with_suffix(".lock"))
        lock.acquire()
    except OSError as error:
        raise unwritable(database.path.parent, error) from error
    try:
        yield
    finally:
        lock.release()


def _fetch(database: Database, home: Path) -> str:
    fresh, known = database.beside(), set[str]()
    if database.copy is not None and database.copy.exists():
        shutil.copyfile(database.copy, fresh.path)
        try:
            with fresh.open() as db:
                known = _ids(db)
        except DamagedStore:
            fresh.path.unlink()  # the copy is kept
    rows = _rows(home, known)
    _replace(database, fresh, rows)
    if not rows:
        return ""
    notice = f"The list of runs was missing. {_restored(len(rows))}"
    logger.warning("%s", notice)
    return notice


def _add_missing(database: Database, home: Path) -> str:
    with database.open() as db:
        db.execute("SELECT * FROM runs").fetchall()  # raises if any page is damaged
        db.execute("BEGIN IMMEDIATE")  # no run is half created or half deleted now
        rows = _rows(home, _ids(db))
        db.executemany(RESTORE, rows)
    return f"The list of runs was incomplete. {_restored(len(rows))}" if rows else ""


def _restored(runs: int) -> str:
    return f"{runs} runs have been restored from their folders." if runs > 1 else "A run has been restored."


def _rebuild(database: Database, home: Path) -> str:
    """Build the new database completely before it replaces the old one, so that running trainers always find one."""
    fresh, rows = database.beside(), _rows(home)
    aside = _replace(database, fresh, rows)
    return (
        f"The list of runs was damaged. It has been rebuilt from the folders of {len(rows)} runs, and the damaged "
        f"file is kept as {aside}."
    )


def _replace(database: Database, fresh: Database, rows: Sequence[dict[str, Any]]) -> str:
    """Add the rows to the new database and put it in the place of the old one; return the old one's new name."""
    with fresh.open() as db:
        db.execute("PRAGMA journal_mode = DELETE")  # a single file can be renamed
        db.executemany(RESTORE, rows)
    aside = f"{database.path.name}.damaged-{uuid.uuid4().hex[:8]}"
    for suffix in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            database.path.with_name(database.path.name + suffix).rename(database.path.with_name(aside + suffix))
    fresh.path.rename(database.path)
    with closing(sqlite3.connect(database.path, timeout=database.busy_s)) as db:
        write_ahead(db)
    return aside


def _ids(db: sqlite3.Connection) -> set[str]:
    return {row["id"] for row in db.execute("SELECT id FROM runs")}


def _rows(home: Path, known: Collection[str] = ()) -> Sequence[dict[str, Any]]:
    """Return the rows of runs from their folders, oldest first, without the known ones."""
    folders = (folder for folder in (home / "runs").glob("*/") if folder.name not in known)
    return sorted(filter(None, map(row_of_folder, folders)), key=lambda row: row["created"])


def row_of_folder(folder: Path) -> dict[str, Any] | None:
    """Return a run's row from its folder, or None if the folder holds no run. Damaged files count as missing."""
    run_id = _run_id(folder)
    found, recipe, log = _read_record(folder), _read_recipe(folder), EventLog(folder / "events.jsonl")
    try:
        events, ending = [*log.read()], logged_ending(log)
    except OSError:
        events, ending = [], None
    if not run_id or not (found or recipe or events):
        return None
    blank = dict.fromkeys(RECORDED) | {
        "owner": "",
        "shared": False,
        "queued": 0,
        "cancel_requested": False,
        "notes": "",
    }
    known = {"model": recipe.model, "data": recipe.data} if recipe else {"model": "", "data": ""}
    name = f"{recipe.preset if recipe else 'run'} {run_id[:8]}"
    row = blank | {"name": name, "created": folder.stat().st_mtime, "message": ""} | known | found
    return (
        row
        | _outcome(row, ending)
        | {
            "id": run_id,
            "step": max((event.step for event in events), default=0),
            "best_eval_loss": figures(events).get("best_eval_loss"),
        }
    )


def _outcome(row: dict[str, Any], ending: tuple[Ending, str] | None) -> dict[str, Any]:
    """Return state and message. The events are newer than the record of a run that had not ended."""
    if row["state"] in get_args(Ending):
        return {}
    if ending:
        return {"state": ending[0], "message": ending[1]}
    # A run with a process may still be running; `reconcile` corrects it if the process is gone.
    return {"state": row["state"] or ("running" if row["pid"] else "interrupted")}


def _run_id(folder: Path) -> str:
    with suppress(ValueError):
        run_id = str(uuid.UUID(folder.name))
        return run_id if run_id == folder.name else ""
    return ""


def _read_record(folder: Path) -> dict[str, Any]:
    """Return the valid fields of run.json."""
    try:
        values = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {name: values[name] for name in RECORDED if name in values and _is_sound(name, values[name])}


def _is_sound(name: str, value: Any) -> bool:
    if not isinstance(value, RECORDED[name]) or (isinstance(value, bool) and RECORDED[name] is not bool):
        return False
    if isinstance(value, str):
        is_text = not any("\ud800" <= character <= "\udfff" for character in value)
        return is_text and (name != "state" or value in STATES)
    return value is None or (math.isfinite(value) and abs(value) < LARGEST)


def _read_recipe(folder: Path) -> Recipe | None:
    try:
        return Recipe.load(folder / "recipe.yaml")
    except StudioError:
        return None
