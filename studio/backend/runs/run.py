"""One training run: its row, its folder, and how it ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from studio.backend.recipe import Recipe
from studio.backend.runs.events import EventLog
from studio.errors import StudioError

Ending = Literal["done", "failed", "cancelled", "interrupted"]
State = Literal["queued", "running"] | Ending
CANCELLED = "Cancelled. It can be resumed from its last checkpoint."


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


def in_queue(runs: Iterable[Run]) -> list[Run]:
    """The queued ones, the next one first."""
    return sorted((run for run in runs if run.state == "queued"), key=lambda run: run.queued)


def is_alive(run: Run) -> bool:
    """Whether the very process that began the run is still there."""
    began = None if run.pid is None else process_created(run.pid)
    # Two seconds: the system computes this from its clock, in whole seconds.
    return began is not None and run.pid_created is not None and abs(began - run.pid_created) < 2


def recorded_outcome(run: Run) -> tuple[Ending, str] | None:
    """How a run whose process is gone has ended, and what is to be said of it; None where nothing tells."""
    if ending := logged_ending(run.events):
        return ending
    return ("cancelled", CANCELLED) if run.cancel_requested else None


def process_created(pid: int) -> float | None:
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


def logged_ending(log: EventLog) -> tuple[Ending, str] | None:
    last = next(iter(deque(log.read(), maxlen=1)), None)
    if last is None or last.kind not in ("done", "failed", "cancelled"):
        return None
    return last.kind, str(last.values.get("message", ""))
