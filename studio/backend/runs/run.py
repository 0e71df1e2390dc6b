"""One training run: its row, its folder and its outcome."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

import psutil

from studio.backend.recipe import HUB_PREFIX, Recipe
from studio.backend.runs.events import EventLog
from studio.errors import StudioError

Ending = Literal["done", "failed", "cancelled", "interrupted"]
State = Literal["queued", "running"] | Ending
DATA = "data.json"
"""File with what is known of a run's data."""
CHECK = "check.json"
"""File with what a check of the same settings has measured."""
LONGEST_NOTES = 10_000
CANCELLED = "Cancelled. It can be resumed from its last checkpoint, or else from its first step."


@dataclass(frozen=True)
class Run:
    """A snapshot of one run in the store. Times are seconds since 1970."""

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
    """When that process started, in seconds since boot. It tells the process from a later one with the same pid."""
    step: int
    best_eval_loss: float | None
    message: str
    """Why the run ended, or its current activity."""
    cancel_requested: bool
    queued: int
    """Queue order: the queued run with the lowest number starts first. A counter, because clocks may be set back."""
    owner: str
    """Who may see and control the run; empty if it was created in a terminal or a single-user studio."""
    shared: bool
    """Whether others who have the run's id may view it."""
    notes: str
    """What its owner wrote about the run."""

    def is_of(self, owner: str) -> bool:
        """Return whether the run belongs to the owner; all runs belong to the empty owner."""
        return not owner or owner == self.owner

    @property
    def data_name(self) -> str:
        """The data set's name: of the Hub, of a sample, or of a file without its folder."""
        return data_name(self.data)

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
        """False if the folder was deleted by hand and only the row is left."""
        return self.folder.is_dir()

    def recipe(self) -> Recipe:
        """Return the settings of the run.

        Raises:
            StudioError: the folder or its recipe was deleted or damaged.
        """
        file = self.folder / "recipe.yaml"
        if not file.is_file():
            raise StudioError(f"The files of run {self.id[:8]} are gone: there is no {file}. Delete the run.")
        return Recipe.load(file)

    def row(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return asdict(self) | {"folder": str(self.folder), "folder_exists": self.folder_exists}


def file_name(path: str) -> str:
    """Return the name of a file without its folder, as Windows and POSIX write paths; other names stay unchanged."""
    return PureWindowsPath(PurePosixPath(path).name).name


def data_name(data: str) -> str:
    return data if data.startswith(HUB_PREFIX) else file_name(data)


def in_queue(runs: Iterable[Run]) -> list[Run]:
    """Return the queued runs in queue order."""
    return sorted((run for run in runs if run.state == "queued"), key=lambda run: run.queued)


def is_alive(run: Run) -> bool:
    """Return whether the process that started the run still exists."""
    began = None if run.pid is None else process_created(run.pid)
    # Two seconds of tolerance, because the system derives this from its clock in whole seconds.
    return began is not None and run.pid_created is not None and abs(began - run.pid_created) < 2


def last_sign(run: Run) -> float:
    """Return when a run last wrote something, in seconds since 1970; at the earliest when it was started."""
    times = [run.started or run.created]
    for file in (run.events.path, run.log):
        with suppress(OSError):  # it was not written yet
            times.append(file.stat().st_mtime)
    return min(max(times), time.time())


def recorded_outcome(run: Run) -> tuple[Ending, str] | None:
    """Return the recorded outcome and message of a run whose process is gone, or None if nothing was recorded."""
    if ending := logged_ending(run.events):
        return ending
    return ("cancelled", CANCELLED) if run.cancel_requested else None


def process_created(pid: int) -> float | None:
    """Return when the process was created, in seconds since boot; None if it does not exist or is a zombie.

    The date of its creation would shift with the system clock.
    """
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time() - psutil.boot_time()
    except psutil.NoSuchProcess:
        return None


def checked_name(name: str, whose: str) -> str:
    """Return a name from user input without surrounding spaces; it may be empty.

    Raises:
        StudioError: the name is too long, or has characters that names can't have.
    """
    name = name.strip()
    if len(name) > 80 or not name.isprintable() or set(name) & set("/\\"):
        raise StudioError(f"{whose} name has up to 80 printable characters, without / and \\. Choose another name.")
    return name


def checked_notes(notes: str) -> str:
    """Return notes from user input, without spaces at the end and characters that a file can't hold.

    Raises:
        StudioError: the notes are too long.
    """
    if len(notes) > LONGEST_NOTES:
        raise StudioError(f"Notes have up to {LONGEST_NOTES:,} characters; these have {len(notes):,}. Shorten them.")
    return re.sub("[\0\ud800-\udfff]", "", notes).rstrip()


def logged_ending(log: EventLog) -> tuple[Ending, str] | None:
    last = next(iter(deque(log.read(), maxlen=1)), None)
    if last is None or last.kind not in ("done", "failed", "cancelled"):
        return None
    return last.kind, str(last.values.get("message", ""))
