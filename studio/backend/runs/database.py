"""The sqlite3 file of the runs: schema, migrations, connections and error messages."""

from __future__ import annotations

import shutil
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from studio.backend.system.files import unwritable
from studio.backend.system.home import local
from studio.backend.system.plan import free_disk
from studio.errors import StudioError

DATABASE = "runs.sqlite3"
BUSY_S = 15.0
SWITCHES = 100
SCHEMA = 4
# A file that is deleted when the disk is full, so that runs can still be listed, cancelled and deleted.
RESERVE = "reserve"
RESERVE_BYTES, RESERVE_BLOCK = 2**20, 2**14
TABLE = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS runs (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, state TEXT NOT NULL, model TEXT NOT NULL, data TEXT NOT NULL,
    created REAL NOT NULL, started REAL, ended REAL, pid INTEGER, pid_created REAL,
    step INTEGER NOT NULL DEFAULT 0, best_eval_loss REAL, message TEXT NOT NULL DEFAULT '',
    cancel_requested INTEGER NOT NULL DEFAULT 0, queued INTEGER NOT NULL DEFAULT 0,
    owner TEXT NOT NULL DEFAULT '', shared INTEGER NOT NULL DEFAULT 0, notes TEXT NOT NULL DEFAULT ''
);
PRAGMA user_version = 4;
COMMIT;
"""
# Migrations by the version that they start from: version 1 has no queue order, version 2 no owners, version 3 no notes.
CHANGES = {
    1: ("ALTER TABLE runs ADD COLUMN queued INTEGER NOT NULL DEFAULT 0", "UPDATE runs SET queued = rowid"),
    2: (
        "ALTER TABLE runs ADD COLUMN owner TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE runs ADD COLUMN shared INTEGER NOT NULL DEFAULT 0",
    ),
    3: ("ALTER TABLE runs ADD COLUMN notes TEXT NOT NULL DEFAULT ''",),
}


class DamagedStore(StudioError):
    """The database is damaged; `recovery.repair` rebuilds it."""


class Database:
    """The database of one home folder.

    It is in the home itself. If the home is mounted storage, it is on the local disk, with a copy in the home.

    Args:
        busy_s: seconds to wait for other writers.
    """

    def __init__(self, path: Path, copy: Path | None, busy_s: float) -> None:
        self.path = path
        self.copy = copy
        self.busy_s = busy_s
        self._copied: tuple[int, ...] = ()

    @classmethod
    def of_home(cls, home: Path, busy_s: float = BUSY_S) -> Database:
        path = local(home) / DATABASE
        return cls(path, home / DATABASE if path.parent != home else None, busy_s)

    @contextmanager
    def open(self) -> Iterator[sqlite3.Connection]:
        """Open a connection with one transaction, which threads and processes must not share.

        Raises:
            StudioError: the database is locked, damaged or can't be written.
        """
        make_folder(self.path.parent)
        try:
            with self._reserve(), closing(sqlite3.connect(self.path, timeout=self.busy_s)) as db, db:
                db.row_factory = sqlite3.Row
                prepare(db)
                yield db
        except sqlite3.Error as error:
            if code_of(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise DamagedStore(
                    f"{self.path} is damaged. A running studio, or `python -m studio runs list`, rebuilds it from the "
                    "folders of the runs and keeps the damaged file. Try again in a moment."
                ) from error
            if sentence := sentence_of(error, self.path):
                raise StudioError(sentence) from error
            raise

    @contextmanager
    def _reserve(self) -> Iterator[None]:
        """Free the reserve while the database is open and the disk is full; fill it before and after."""
        reserve = self.path.with_name(RESERVE)
        # The disk itself, because what a Space's plan leaves free is a sum over all files, too slow for each access.
        if shutil.disk_usage(reserve.parent).free < RESERVE_BYTES:
            with suppress(OSError):
                reserve.unlink(missing_ok=True)
        try:
            yield
        finally:
            if not reserve.exists():
                _fill(reserve)

    def beside(self) -> Database:
        """Return a new database in the same folder, to replace this one or its copy."""
        return Database(self.path.with_name(f"{uuid.uuid4().hex}.sqlite3"), None, self.busy_s)

    def keep_copy(self) -> None:
        """Copy the database into the mounted home if it has changed since the last copy.

        Raises:
            StudioError: the home can't be written.
        """
        if self.copy is None or not self.path.exists():
            return
        files = (self.path, self.path.with_name(f"{self.path.name}-wal"))
        now = tuple(file.stat().st_mtime_ns if file.exists() else 0 for file in files)
        if now == self._copied:
            return
        whole, part = self.beside().path, self.copy.with_suffix(f".{uuid.uuid4().hex[:8]}.part")
        try:
            with self.open() as db, closing(sqlite3.connect(whole)) as target:
                db.backup(target)
            shutil.copyfile(whole, part)
            part.replace(self.copy)
            self._copied = now
        except OSError as error:
            raise unwritable(self.copy, error, "Check the mounted storage.") from error
        finally:
            whole.unlink(missing_ok=True)


def _fill(reserve: Path) -> None:
    """Write the reserve; on a full disk, as much of it as fits. The database works without it while there is space."""
    with suppress(OSError), reserve.open("wb", 0) as file:
        for _ in range(RESERVE_BYTES // RESERVE_BLOCK):
            file.write(bytes(RESERVE_BLOCK))


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error, "Or set STUDIO_HOME to another folder.") from error


def prepare(db: sqlite3.Connection) -> None:
    version = _version(db)
    if version > SCHEMA:
        raise StudioError("The list of runs was written by a newer studio. Update this one.")
    if not version:
        write_ahead(db)
        db.executescript(TABLE)
    elif version < SCHEMA:
        db.execute("BEGIN IMMEDIATE")
        for each in range(_version(db), SCHEMA):  # read again: another process may have migrated it
            for statement in CHANGES[each]:
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {SCHEMA}")
        db.commit()


def _version(db: sqlite3.Connection) -> int:
    return db.execute("PRAGMA user_version").fetchone()[0]


def write_ahead(db: sqlite3.Connection) -> None:
    """Switch to WAL mode, with retries: SQLite does not wait while another process switches the same new database."""
    for left in reversed(range(SWITCHES)):
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if not left or code_of(error) != sqlite3.SQLITE_BUSY:
                raise
            time.sleep(0.05)


def sentence_of(error: sqlite3.Error, path: Path) -> str:
    """Return a message with a remedy, or an empty string if the error is a bug."""
    code, free = code_of(error), free_disk(path.parent)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"Another program keeps {path} locked. Close it, or try again in a moment."
    is_io = code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
    if code == sqlite3.SQLITE_FULL or (is_io and free < RESERVE_BYTES):
        return (
            f"The disk is full, so {path} can't be written: {free / 2**20:.1f} MiB are free and 1 MiB is needed. "
            "Delete runs, or other files on this disk."
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_IOERR):
        return f"{path} can't be read and written. Check the permissions of the file and its folder, and the disk."
    return ""


def code_of(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the bits of the extended code
