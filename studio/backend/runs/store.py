"""The store of training runs, which page and command line share: a row in sqlite3 and a folder for each run.

    store = RunStore()
    run = store.create(Recipe.load("starter/lora_experts", ["data=rows.csv"]), name="dictionary")
    store.mark_running(run.id, os.getpid())
    run.events.append("log", step=1, values={"loss": 2.7})
    store.finish(run.id, "done")

<home>/runs.sqlite3 holds what a list of runs shows; <home>/runs/<id>/ holds recipe.yaml, run.json, events.jsonl,
log.txt, checkpoints/ and adapter/, from which `repair` rebuilds the list. Any number of threads and processes may use
one store. Where the home is mounted storage, the database lies on the local disk, and the home has a copy.

Where several people use one server, every run has an owner, and whoever asks as one finds only their own. The empty
owner is whom a terminal and a studio of one person work for: it finds all runs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import time
import uuid
from collections import deque
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import psutil
from filelock import FileLock

from studio.backend.recipe import Recipe
from studio.backend.runs.events import EventLog, TrainKind, figures
from studio.backend.system.home import home, local
from studio.errors import StudioError

Ending = Literal["done", "failed", "cancelled", "interrupted"]
State = Literal["queued", "running"] | Ending
DATABASE = "runs.sqlite3"
BUSY_S = 15.0
SWITCHES = 100
# The database in the folder of one run, as far as the folder does not tell it otherwise.
RECORD = "run.json"
RECORDED = ("name", "created", "started", "pid", "pid_created", "owner", "shared")
SCHEMA = 3
TABLE = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS runs (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, state TEXT NOT NULL, model TEXT NOT NULL, data TEXT NOT NULL,
    created REAL NOT NULL, started REAL, ended REAL, pid INTEGER, pid_created REAL,
    step INTEGER NOT NULL DEFAULT 0, best_eval_loss REAL, message TEXT NOT NULL DEFAULT '',
    cancel_requested INTEGER NOT NULL DEFAULT 0, queued INTEGER NOT NULL DEFAULT 0,
    owner TEXT NOT NULL DEFAULT '', shared INTEGER NOT NULL DEFAULT 0
);
PRAGMA user_version = 3;
COMMIT;
"""
# What each version lacks: the first had no order of its own in the queue, the second nobody whose the runs are.
CHANGES = {
    1: ("ALTER TABLE runs ADD COLUMN queued INTEGER NOT NULL DEFAULT 0", "UPDATE runs SET queued = rowid"),
    2: (
        "ALTER TABLE runs ADD COLUMN owner TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE runs ADD COLUMN shared INTEGER NOT NULL DEFAULT 0",
    ),
}
CANCELLED = "Cancelled. It can be resumed from its last checkpoint."
SILENT = "Its process ended without a word: the machine went down, or memory ran out. It can be resumed."
TO_THE_END = "UPDATE runs SET queued = (SELECT max(queued) + 1 FROM runs) WHERE id = ?"
RESTORE = """
INSERT INTO runs (
    id, name, state, model, data, created, started, pid, pid_created, step, best_eval_loss, message, owner, shared
) VALUES (
    :id, :name, :state, :model, :data, :created, :started, :pid, :pid_created, :step, :best_eval_loss, :message,
    :owner, :shared
)
"""


class DamagedStore(StudioError):
    """The database can't be read as one; `RunStore.repair` makes a new one."""


@dataclass(frozen=True)
class Run:
    """One run as the store knew it when asked. Times are seconds since 1970."""

    folder: Path
    id: str
    name: str
    state: State
    model: str
    data: str
    created: float
    started: float | None
    ended: float | None
    pid: int | None
    pid_created: float | None
    """When that process began, in seconds since the machine did: a later one may have got the same number."""
    step: int
    best_eval_loss: float | None
    message: str
    """Why it ended, or what is going on."""
    cancel_requested: bool
    queued: int
    """Of two queued runs, the one with the lower number begins first. A count, as clocks may be set back."""
    owner: str
    """Who sees it and works with it; empty where a terminal or a studio of one person made it."""
    shared: bool
    """Whether others who know its id may look at it."""

    def is_of(self, owner: str) -> bool:
        """Whether it is that owner's; everything is the empty one's."""
        return not owner or owner == self.owner

    @property
    def events(self) -> EventLog:
        return EventLog(self.folder / "events.jsonl")

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def folder_exists(self) -> bool:
        """False where somebody deleted it by hand; the row alone is left then."""
        return self.folder.is_dir()

    def recipe(self) -> Recipe:
        """The settings that it was started with.

        Raises:
            StudioError: the folder or its recipe was deleted or damaged.
        """
        file = self.folder / "recipe.yaml"
        if not file.is_file():
            raise StudioError(f"The files of run {self.id[:8]} are gone: there is no {file}. Delete the run.")
        return Recipe.load(file)

    def row(self) -> dict[str, Any]:
        """What `--json` prints."""
        return asdict(self) | {"folder": str(self.folder), "folder_exists": self.folder_exists}


class RunStore:
    """All runs of one home folder.

    Args:
        busy_s: seconds to wait for others who write; whoever shows a page waits shorter.

    Ids may be cut short to their first characters. Every method raises StudioError where the database is locked,
    damaged or can't be written; nothing is ever deleted to repair it.
    """

    def __init__(self, folder: Path | None = None, busy_s: float | None = None) -> None:
        self.home = folder or home()
        self.busy_s = BUSY_S if busy_s is None else busy_s
        self.path = local(self.home) / DATABASE
        self.copy = self.home / DATABASE if self.path.parent != self.home else None
        """Of the database, where it does not lie in the home itself."""
        self._copied: tuple[int, ...] = ()

    def create(self, recipe: Recipe, name: str = "", begin: bool = False, owner: str = "") -> Run:
        """A new queued run with its folder; an empty name becomes one of preset and id.

        Args:
            begin: it is not queued but runs from now on, in this process.

        Raises:
            StudioError: a name that is none, or no space for the folder.
        """
        run_id = str(uuid.uuid4())
        name = checked_name(name, "A run's") or f"{recipe.preset} {run_id[:8]}"
        recipe = _anchored(recipe)
        with self._open() as db:
            row = (run_id, name, recipe.model, recipe.data, time.time(), owner)
            db.execute(
                "INSERT INTO runs (id, name, state, model, data, created, owner) VALUES (?, ?, 'queued', ?, ?, ?, ?)",
                row,
            )
            db.execute(TO_THE_END, (run_id,))
            if begin:
                _begin(db, run_id, os.getpid())
            # Before the row is committed, so that no list ever shows a run without a folder.
            _make_folder(self.home / "runs" / run_id, recipe)
        return self._recorded(run_id)

    def get(self, run_id: str, owner: str = "") -> Run:
        """The run of that id, or of the only id that begins so.

        Raises:
            StudioError: no id, or no such run of the owner, or several.
        """
        if not re.fullmatch("[0-9a-f-]{1,36}", run_id):
            raise StudioError(
                f"{run_id[:60]!r} is not the id of a run. Ids are listed by `python -m studio runs list`."
            )
        with self._open() as db:
            # Such an id holds none of LIKE's wildcards.
            rows = db.execute(
                "SELECT * FROM runs WHERE id LIKE ? AND ? IN ('', owner) ORDER BY created LIMIT 9",
                (run_id + "%", owner),
            ).fetchall()
        if not rows:
            raise StudioError(f"There is no run {run_id}. Runs are listed by `python -m studio runs list`.")
        if len(rows) > 1:
            ids = ", ".join(row["id"][:13] for row in rows)
            raise StudioError(f"Several runs begin with {run_id}: {ids}. Give more characters.")
        return self._run(rows[0])

    def list(self, owner: str = "") -> Sequence[Run]:
        """All runs of an owner, the latest first."""
        with self._open() as db:
            rows = db.execute("SELECT * FROM runs WHERE ? IN ('', owner) ORDER BY rowid DESC", (owner,)).fetchall()
        return [self._run(row) for row in rows]

    def queue(self) -> Sequence[Run]:
        """The queued runs, the next one first."""
        return in_queue(self.list())

    def mark_running(self, run_id: str, pid: int | None = None) -> Run:
        """A queued run begins in that process (this one unless told); saying it twice is fine.

        Raises:
            StudioError: the run is not queued any more, or the process is gone.
        """
        run_id, pid = self.get(run_id).id, os.getpid() if pid is None else pid
        with self._open() as db:
            changed = _begin(db, run_id, pid)
        run = self._recorded(run_id)
        if not changed and (run.state, run.pid) != ("running", pid):
            raise StudioError(f"Run {run_id[:8]} is {run.state}, not queued, so it can't be started.")
        return run

    def update(
        self,
        run_id: str,
        *,
        step: int | None = None,
        best_eval_loss: float | None = None,
        message: str | None = None,
    ) -> None:
        """Writes down how far it is; None leaves a value as it is.

        Raises:
            StudioError: there is no such run any more.
        """
        run_id = self.get(run_id).id
        self._write(
            "UPDATE runs SET step = coalesce(?, step), best_eval_loss = coalesce(?, best_eval_loss), "
            "message = coalesce(?, message) WHERE id = ?",
            (step, best_eval_loss, message, run_id),
        )

    def finish(self, run_id: str, state: Ending, message: str = "") -> Run:
        """How a run ended. What was said first holds, except that "interrupted" is only a guess.

        Raises:
            StudioError: there is no such run any more.
        """
        run_id = self.get(run_id).id
        self._write(
            "UPDATE runs SET state = ?, message = ?, ended = ? "
            "WHERE id = ? AND state IN ('queued', 'running', 'interrupted')",
            (state, message, time.time(), run_id),
        )
        return self.get(run_id)

    def resume(self, run_id: str, begin: bool = False) -> Run:
        """Puts a run that ended early back in the queue, to go on from its last checkpoint; `begin` as of `create`.

        Raises:
            StudioError: it is done, or has not ended, or its folder is gone.
        """
        run = self.get(run_id)
        run_id = run.id
        run.recipe()
        with self._open() as db:
            changed = db.execute(
                "UPDATE runs SET state = 'queued', ended = NULL, message = '', cancel_requested = 0 "
                "WHERE id = ? AND state IN ('failed', 'cancelled', 'interrupted')",
                (run_id,),
            ).rowcount
            db.execute(TO_THE_END, (run_id,))
            if changed and begin:
                _begin(db, run_id, os.getpid())
        run = self._recorded(run_id)
        if changed:
            _tell(run, "resumed")
        else:
            raise StudioError(f"Run {run_id[:8]} is {run.state}: only one that ended early can be resumed.")
        return run

    def requeue(self, run_id: str) -> Run:
        """Back into the queue with a running run whose process makes room for others, or out of it where somebody
        asked for that meanwhile.

        Raises:
            StudioError: there is no such run any more.
        """
        run_id = self.get(run_id).id
        with self._open() as db:
            changed = db.execute(
                "UPDATE runs SET state = 'queued' WHERE id = ? AND state = 'running' AND NOT cancel_requested",
                (run_id,),
            ).rowcount
            db.execute(TO_THE_END, (run_id,))
        if not changed:
            return self.finish(run_id, "cancelled", CANCELLED)
        run = self._recorded(run_id)
        _tell(run, "resumed")
        return run

    def reconcile(self, ours: Container[str] = ()) -> Sequence[Run]:
        """The runs whose process is gone although they run by the list: interrupted, unless their events tell how they
        ended.

        Args:
            ours: ids of runs whose process is this one's child: its parent learns more of its end.
        """
        dead = [run for run in self.list() if run.state == "running" and run.id not in ours and not is_alive(run)]
        for run in dead:
            state, message = recorded_outcome(run) or ("interrupted", SILENT)
            # Unless it was resumed in the meantime, in a new process.
            self._write(
                "UPDATE runs SET state = ?, message = ?, ended = ? "
                "WHERE id = ? AND state = 'running' AND pid IS ? AND pid_created IS ?",
                (state, message, time.time(), run.id, run.pid, run.pid_created),
            )
        return [self.get(run.id) for run in dead]

    def request_cancel(self, run_id: str) -> Run:
        """Asks a running run to stop at its next step, and takes a queued one out of the queue.

        Raises:
            StudioError: it has ended.
        """
        run_id = self.get(run_id).id
        cancelled = self._write(
            "UPDATE runs SET state = 'cancelled', message = ?, ended = ? WHERE id = ? AND state = 'queued'",
            ("Cancelled before it began.", time.time(), run_id),
        )
        asked = self._write("UPDATE runs SET cancel_requested = 1 WHERE id = ? AND state = 'running'", (run_id,))
        run = self.get(run_id)
        if not (cancelled or asked):
            raise StudioError(f"Run {run_id[:8]} is {run.state}: there is nothing left to cancel.")
        return run

    def cancel_requested(self, run_id: str) -> bool:
        return self.get(run_id).cancel_requested

    def share(self, run_id: str, shared: bool = True) -> Run:
        """Lets others look at a run, or no more.

        Raises:
            StudioError: there is no such run any more.
        """
        run_id = self.get(run_id).id
        self._write("UPDATE runs SET shared = ? WHERE id = ?", (shared, run_id))
        return self._recorded(run_id)

    def transfer_owner(self, before: str, after: str) -> None:
        """All runs of one owner become another's."""
        if self._write("UPDATE runs SET owner = ? WHERE owner = ?", (after, before)):
            for run in self.list(after):
                self._recorded(run.id)

    def delete(self, run_id: str) -> None:
        """Deletes the row and the folder with checkpoints and adapter.

        Raises:
            StudioError: it is running, or files can't be deleted.
        """
        run = self.get(run_id)
        if not self._write("DELETE FROM runs WHERE id = ? AND state != 'running'", (run.id,)):
            raise StudioError(f"Run {run.id[:8]} is running. Cancel it first.")
        try:
            if run.folder_exists:
                shutil.rmtree(run.folder)
        except OSError as error:
            raise StudioError(f"{run.folder} can't be deleted ({error.strerror}). Delete it by hand.") from error

    def repair(self) -> str:
        """Where the database is damaged, sets it aside and makes a new one out of the runs' folders.

        Returns:
            What was done, as a sentence; empty where nothing had to be.
        """
        _make(self.path.parent)
        with FileLock(self.path.with_suffix(".lock")):
            try:
                self.list()
            except DamagedStore:
                return self._made_again()
        return ""

    def _made_again(self) -> str:
        """The new database is whole before it takes the place of the old one: runs that go on never miss it."""
        fresh = self._beside()
        rows = self._rows()
        with fresh._open() as db:
            db.execute("PRAGMA journal_mode = DELETE")  # so that it is one file
            db.executemany(RESTORE, rows)
        aside = f"{self.path.name}.damaged-{uuid.uuid4().hex[:8]}"
        for suffix in ("-wal", "-shm", ""):
            with suppress(FileNotFoundError):
                self.path.with_name(self.path.name + suffix).rename(self.path.with_name(aside + suffix))
        fresh.path.rename(self.path)
        return (
            f"The list of runs was damaged. It has been made again out of the folders of {len(rows)} runs, and the "
            f"damaged file is kept as {aside}."
        )

    def keep_copy(self) -> None:
        """Copies the database into a home of mounted storage, if it has changed since the last time.

        Raises:
            StudioError: the home can't be written.
        """
        if self.copy is None or not self.path.exists():
            return
        now = tuple(file.stat().st_mtime_ns if file.exists() else 0 for file in (self.path, _log_of(self.path)))
        if now == self._copied:
            return
        whole, part = self._beside().path, self.copy.with_suffix(f".{uuid.uuid4().hex[:8]}.part")
        try:
            with self._open() as db, closing(sqlite3.connect(whole)) as target:
                db.backup(target)
            shutil.copyfile(whole, part)
            part.replace(self.copy)
            self._copied = now
        except OSError as error:
            raise StudioError(f"{self.copy} can't be written ({error.strerror}). Check the mounted storage.") from error
        finally:
            whole.unlink(missing_ok=True)

    def _fetch(self) -> None:
        """The database of a home whose local disk is a new one: its last copy, and the runs that this lacks."""
        with FileLock(self.path.with_suffix(".lock")):
            if self.path.exists():
                return
            fresh = self._beside()
            if self.copy is not None and self.copy.exists():
                shutil.copyfile(self.copy, fresh.path)
            try:
                known = {run.id for run in fresh.list()}
            except DamagedStore:
                fresh.path.unlink()  # the copy is kept
                known = set()
            with fresh._open() as db:
                db.execute("PRAGMA journal_mode = DELETE")  # so that it is one file
                db.executemany(RESTORE, [row for row in self._rows() if row["id"] not in known])
            fresh.path.rename(self.path)

    def _beside(self) -> RunStore:
        """A database of its own, to take the place of this one or of its copy."""
        fresh = RunStore(self.home)
        fresh.path, fresh.copy = self.path.with_name(f"{uuid.uuid4().hex}.sqlite3"), None
        return fresh

    def _rows(self) -> Sequence[dict[str, Any]]:
        """Of all runs, as their folders tell it, the oldest first."""
        found = filter(None, map(_row, (self.home / "runs").glob("*/")))
        return sorted(found, key=lambda row: row["created"])

    def _run(self, row: sqlite3.Row) -> Run:
        values = {**row, "cancel_requested": bool(row["cancel_requested"]), "shared": bool(row["shared"])}
        return Run(folder=self.home / "runs" / row["id"], **values)

    def _recorded(self, run_id: str) -> Run:
        """The run, after what is only in the database was written into its folder too."""
        run = self.get(run_id)
        record = {name: getattr(run, name) for name in RECORDED}
        if run.folder_exists:
            _write_whole(run.folder / RECORD, json.dumps(record))
        return run

    def _write(self, statement: str, values: tuple[Any, ...]) -> int:
        """How many rows it changed."""
        with self._open() as db:
            return db.execute(statement, values).rowcount

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection and a transaction of its own for each call: threads and processes then never share one."""
        _make(self.path.parent)
        if self.copy is not None and not self.path.exists():
            self._fetch()
        try:
            with closing(sqlite3.connect(self.path, timeout=self.busy_s)) as db, db:
                db.row_factory = sqlite3.Row
                _prepare(db)
                yield db
        except sqlite3.Error as error:
            if _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise DamagedStore(
                    f"{self.path} is damaged. An open studio makes the list of runs again out of their folders, and so "
                    "does `python -m studio runs list`; the damaged file is kept. Try again in a moment."
                ) from error
            if sentence := _sentence(error, self.path):
                raise StudioError(sentence) from error
            raise


def in_queue(runs: Iterable[Run]) -> list[Run]:
    """The queued ones, the next one first."""
    return sorted((run for run in runs if run.state == "queued"), key=lambda run: run.queued)


def is_alive(run: Run) -> bool:
    """Whether the very process that began the run is still there."""
    began = None if run.pid is None else _began(run.pid)
    # Two seconds: the system computes this from its clock, in whole seconds.
    return began is not None and run.pid_created is not None and abs(began - run.pid_created) < 2


def recorded_outcome(run: Run) -> tuple[Ending, str] | None:
    """How a run whose process is gone has ended, and what is to be said of it; None where nothing tells."""
    if ending := _ending(run.events):
        return ending
    return ("cancelled", CANCELLED) if run.cancel_requested else None


def _begin(db: sqlite3.Connection, run_id: str, pid: int) -> int:
    """Whether a queued run now runs in that process.

    Raises:
        StudioError: the process is gone.
    """
    began = _began(pid)
    if began is None:
        raise StudioError(f"Process {pid} of run {run_id[:8]} ended at once; the run's log says why.")
    return db.execute(
        "UPDATE runs SET state = 'running', started = ?, ended = NULL, pid = ?, pid_created = ?, message = '' "
        "WHERE id = ? AND state = 'queued'",
        (time.time(), pid, began, run_id),
    ).rowcount


def _began(pid: int) -> float | None:
    """When that process was created, in seconds since the machine was started; None where there is no such process, or
    only what is left of it until its parent looks. The date of its creation would move with the system's clock."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time() - psutil.boot_time()
    except psutil.NoSuchProcess:
        return None


def checked_name(name: str, whose: str) -> str:
    """A name that a person gives, without spaces around it; it may be empty.

    Raises:
        StudioError: it is too long, or holds what no name has.
    """
    name = name.strip()
    if len(name) > 80 or not name.isprintable() or set(name) & set("/\\"):
        raise StudioError(f"{whose} name is up to 80 printable characters without / and \\. Choose another.")
    return name


def _log_of(database: Path) -> Path:
    """What is not yet in the database's own file."""
    return database.with_name(f"{database.name}-wal")


def _row(folder: Path) -> dict[str, Any] | None:
    """What a run's folder tells of it; None where it is none."""
    try:
        recipe, run_id = Recipe.load(folder / "recipe.yaml"), str(uuid.UUID(folder.name))
    except (StudioError, ValueError):
        return None
    record: dict[str, Any] = dict.fromkeys(RECORDED) | {"owner": "", "shared": False}
    record |= {"name": f"{recipe.preset} {run_id[:8]}", "created": folder.stat().st_mtime}
    with suppress(OSError, ValueError):
        record |= json.loads((folder / RECORD).read_text())
    log = EventLog(folder / "events.jsonl")
    # One that still runs is known by its process; `reconcile` finds the others.
    state, message = _ending(log) or ("running" if record["pid"] else "interrupted", "")
    return record | {
        "id": run_id,
        "model": recipe.model,
        "data": recipe.data,
        "state": state,
        "step": max((event.step for event in log.read()), default=0),
        "best_eval_loss": figures(log.read()).get("best_eval_loss"),
        "message": message,
    }


def _ending(log: EventLog) -> tuple[Ending, str] | None:
    last = next(iter(deque(log.read(), maxlen=1)), None)
    if last is None or last.kind not in ("done", "failed", "cancelled"):
        return None
    return last.kind, str(last.values.get("message", ""))


def _tell(run: Run, kind: TrainKind) -> None:
    try:
        run.events.append(kind, run.step, {})
    except OSError as error:
        raise StudioError(f"{run.folder} can't be written ({error.strerror}). Free some disk space.") from error


def _write_whole(path: Path, text: str) -> None:
    fresh = path.with_suffix(f".{uuid.uuid4().hex[:8]}.part")
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        raise StudioError(f"{path} can't be written ({error.strerror}). Free some disk space.") from error


def _anchored(recipe: Recipe) -> Recipe:
    """A run may be resumed from another folder than it was started in."""
    data = Path(recipe.data)
    return replace(recipe, data=str(data.resolve())) if data.is_file() else recipe


def _make_folder(folder: Path, recipe: Recipe) -> None:
    _make(folder)
    _write_whole(folder / "recipe.yaml", recipe.to_yaml())


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = "Check its permissions and the disk, or set STUDIO_HOME to another folder."
        raise StudioError(f"{folder} can't be made ({error.strerror}). {remedy}") from error


def _prepare(db: sqlite3.Connection) -> None:
    version = _version(db)
    if version > SCHEMA:
        raise StudioError("The list of runs was written by a newer studio. Update this one.")
    if not version:
        _write_ahead(db)
        db.executescript(TABLE)
    elif version < SCHEMA:
        db.execute("BEGIN IMMEDIATE")
        for each in range(_version(db), SCHEMA):  # anew: another process may have come first
            for statement in CHANGES[each]:
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {SCHEMA}")
        db.commit()


def _version(db: sqlite3.Connection) -> int:
    return db.execute("PRAGMA user_version").fetchone()[0]


def _write_ahead(db: sqlite3.Connection) -> None:
    """SQLite does not wait by itself for another process that switches the same new database."""
    for left in reversed(range(SWITCHES)):
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if not left or _code(error) != sqlite3.SQLITE_BUSY:
                raise
            time.sleep(0.05)


def _sentence(error: sqlite3.Error, path: Path) -> str:
    """What a person can do about it; empty where nothing, because it is a bug."""
    code = _code(error)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"Another program keeps {path} locked. Close it, or try again in a moment."
    if code == sqlite3.SQLITE_FULL:
        return f"The disk is full, so {path} can't be written. Free some space."
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_IOERR):
        return f"{path} can't be read and written. Check the permissions of it and its folder, and the disk."
    return ""


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest of the number only tells variants apart
