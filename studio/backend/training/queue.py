"""The queue of training runs and its supervisor: one run at a time, each in a separate process.

    jobs = Jobs()
    jobs.open()                              # starts queued runs, and takes over the run of an earlier server
    run = jobs.start(Recipe(...), "dictionary")
    jobs.place(run.id)                       # 1: the next one
    jobs.cancel(run.id)

All persistent state is in the store, so page and command line see the same, and a killed server loses nothing: the
process of a run continues, and the next server identifies it by its pid and start time.
"""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from studio.backend.data.uploads import clean
from studio.backend.hosting import demo
from studio.backend.recipe import Recipe
from studio.backend.runs.database import DamagedStore
from studio.backend.runs.events import figures
from studio.backend.runs.room import delete_leftovers, require_room
from studio.backend.runs.run import Ending, Run, recorded_outcome
from studio.backend.runs.store import RunStore
from studio.backend.system import process as child
from studio.backend.system import zero_gpu
from studio.backend.system.files import atomic_write, require_space
from studio.backend.system.home import is_mounted
from studio.backend.training.checkpoint import last_step
from studio.errors import StudioError

logger = logging.getLogger(__name__)
POLL_S = 1.0
# Between two copies of the list of runs into a mounted home.
COPY_S = 20.0
# Between two searches for uploads that no run uses.
CLEAN_S = 3600.0
DAY_S = 24 * 3600.0
# How long a cancelled run may take to finish its step, at least, and then to save a checkpoint and exit.
STEP_S = 30.0
END_S = 60.0
# Its steps so far are the measure: a cancelled run may take this many times their mean.
STEPS_WAITED = 2.0
# How long the page shows a problem with the list of runs after it is solved.
NOTICE_S = 60.0
# More than a checkpoint of the largest adapter and the log need.
SPACE_BYTES = 2**30
QUEUED_AT_MOST = 20
# The part of the queue for one owner and for one address, if there are several. On a Space, visitors may seem to share
# an address.
SHARE, SPACE_SHARE = 0.5, 0.75


class Jobs:
    """The queue and its supervisor.

    Args:
        command: the command that carries out a run; the id of the run is appended.
        step_s, end_s: seconds from a cancel to SIGTERM, or more if steps take long, and from there to SIGKILL.
        begins: whether the supervisor starts queued runs. On ZeroGPU `slices` does, with the GPU time of a visitor.
    """

    def __init__(
        self,
        store: RunStore | None = None,
        command: Sequence[str] = ("-m", "studio.backend.training.run"),
        step_s: float = STEP_S,
        end_s: float = END_S,
        begins: bool = not zero_gpu.ACTIVE,
    ) -> None:
        self.store = store or RunStore()
        self.notice = ""
        """A message about the store for the page, for example that it was rebuilt."""
        self._command, self._step_s, self._end_s, self.begins = command, step_s, end_s, begins
        self._lock = FileLock(self.store.path.with_name("supervisor.lock"), thread_local=False)
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._term_at: dict[str, float] = {}
        """When to send SIGTERM to a cancelled run."""
        self._addresses: dict[str, str] = {}
        """Who queued a run, as far as this server knows."""
        self._adding, self._changing, self._pause = threading.Lock(), threading.Lock(), threading.Lock()
        self._wake, self._closed = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._running: Run | None = None
        self._notice_until = 0.0
        self._copied_at = self._alone_at = -COPY_S
        self._clean_at = 0.0
        self._has_waited = False  # for another server that used the home

    def open(self) -> None:
        """Start the supervisor. Only one server per home supervises; another one takes over when it ends.

        Raises:
            StudioError: the store can't be read.
        """
        if notice := self.store.repair():
            self._notify(notice)
        self._thread = threading.Thread(target=self._supervise, daemon=True, name="supervisor")
        self._thread.start()

    def close(self) -> None:
        """Stop the supervisor; runs continue."""
        self._closed.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        self._lock.release()

    def start(
        self,
        recipe: Recipe,
        name: str = "",
        owner: str = "",
        address: str = "",
        checked: dict[str, Any] | None = None,
    ) -> Run:
        """Add a new run to the end of the queue; `checked` is what a check of this recipe has measured.

        Args:
            address: of the visitor, who may appear as several owners.

        Raises:
            StudioError: the queue, the quota or the disk is full, or the store can't be written.
        """
        with self._adding:
            self._require_room(owner, address)
            run = self.store.create(recipe, name, owner=owner, checked=checked)
            self._remember(run.id, address)
        self._wake.set()
        return run

    def resume(self, run_id: str, address: str = "") -> Run:
        """Add a run that ended early to the end of the queue, to resume it from its last complete checkpoint.

        Raises:
            StudioError: as for `start`, or the run can't be resumed.
        """
        with self._adding:
            self._require_room(self.store.get(run_id).owner, address)
            run = self.store.resume(run_id)
            self._remember(run.id, address)
        self.store.update(run.id, step=last_step(run))
        self._wake.set()
        return self.store.get(run.id)

    def cancel(self, run_id: str) -> Run:
        """Stop a run after its current step, or take it out of the queue.

        Raises:
            StudioError: the run has ended.
        """
        run = self.store.request_cancel(run_id)
        self._wake.set()
        return run

    def delete(self, run_id: str) -> None:
        """Delete a run.

        Raises:
            StudioError: the run is running, or its files can't be deleted.
        """
        with self._changing:  # not while it is being started
            self.store.delete(run_id)

    def place(self, run_id: str) -> int:
        """Return the run's place in the queue: 1 starts next, 0 is not queued."""
        ids = [run.id for run in self.store.queue()]
        return ids.index(run_id) + 1 if run_id in ids else 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Start no run inside the block; raise StudioError if one is being trained, or the queue is paused already."""
        if not self._pause.acquire(blocking=False):
            raise StudioError("Another check is running. Try again in a moment.")
        try:
            with self._changing:  # not while a run is being started
                training = self.training()
            if training is not None:
                raise StudioError(
                    "Another run is being trained, and there is memory for one at a time. Check again when it has "
                    "ended, or start your run: it waits in the queue and is checked before its first step."
                )
            yield
        finally:
            self._pause.release()
            self._wake.set()

    def training(self) -> Run | None:
        """Return the run that is being trained, by this server or in a terminal."""
        return next((run for run in self.store.list() if run.state == "running"), None)

    def status(self, owner: str = "") -> str:
        """Return the status line for an owner's page: a problem with the store, or the run that slows down answers."""
        if self.notice:
            return self.notice
        run = self._running
        return "" if run is None else f"{name_for(owner, run)} is being trained, so answers are slower."

    def _require_room(self, owner: str, address: str) -> None:
        limits, queue = demo.limits(), self.store.queue()
        most = limits.queued if limits else QUEUED_AT_MOST
        if len(queue) >= most:
            raise StudioError(f"{most} runs are queued already. Cancel one, or wait until one has ended.")
        own = sum(run.owner == owner for run in queue)
        if owner and own >= most * SHARE:
            raise StudioError(f"You have {own} runs in the queue already. Cancel one, or wait until one has ended.")
        here = sum(self._addresses.get(run.id) == address for run in queue)
        if owner and address and here >= most * (SPACE_SHARE if demo.space_id() else SHARE):
            raise StudioError(f"Your address has {here} runs in the queue already. Wait until one has ended.")
        require_space(self.store.home, SPACE_BYTES)
        require_room(self.store, owner)

    def _remember(self, run_id: str, address: str) -> None:
        """Count a queued run for an address, until it starts."""
        queued = {run.id for run in self.store.queue()}
        self._addresses = {each: self._addresses[each] for each in self._addresses if each in queued}
        self._addresses[run_id] = address

    # --- the supervisor's thread

    def _supervise(self) -> None:
        while not self._closed.is_set():
            self._guarded(self._tick)
            self._wake.wait(POLL_S)
            self._wake.clear()

    def _guarded(self, work: Callable[[], None]) -> None:
        """Do the work and report errors, so that the supervisor survives and the next tick tries again."""
        try:
            self._repairing(work)
            if time.monotonic() > self._notice_until:
                self.notice = ""
        except StudioError as error:
            self._notify(str(error))
        except Exception:
            logger.exception("a tick of the supervisor failed; the next one tries again")

    def _repairing(self, work: Callable[[], None]) -> None:
        try:
            work()
        except DamagedStore:
            if notice := self.store.repair():
                self._notify(notice)

    def _notify(self, notice: str) -> None:
        if notice != self.notice:
            logger.warning("%s", notice)
        self.notice, self._notice_until = notice, time.monotonic() + NOTICE_S

    def _tick(self) -> None:
        if not self._supervises():
            self._running = self.training()
            return
        if is_mounted(self.store.home):
            self._require_alone()
        self._keep_copy()
        if notice := self.store.take_notice():
            self._notify(notice)
        self._clean()
        self._record_ends()
        self.store.reconcile(self._children)
        self._running = running = self.training()
        if running is not None:
            self._escalate_cancel(running)
        if running is not None or not self.begins:
            return
        with self._changing:
            queue = self.store.queue()
            if queue and not self._pause.locked():
                self._begin(queue[0])

    def _keep_copy(self) -> None:
        if time.monotonic() - self._copied_at >= COPY_S:
            self._copied_at = time.monotonic()
            self.store.keep_copy()

    def _clean(self) -> None:
        if time.monotonic() >= self._clean_at:
            self._clean_at = time.monotonic() + CLEAN_S
            clean(self.store)
            delete_leftovers(self.store.home, DAY_S)

    def _require_alone(self) -> None:
        """Raise StudioError if a server on another machine uses this home, which the lock on the local disk misses.

        Once that server is gone, its runs are added to the list of this one.
        """
        if time.monotonic() - self._alone_at < COPY_S:
            return
        file, name = self.store.home / "server.txt", socket.gethostname()
        if file.exists() and file.read_bytes() != name.encode() and time.time() - file.stat().st_mtime < 3 * COPY_S:
            self._has_waited = True
            raise StudioError(
                "Another server uses the same storage, so this one starts no runs and does not save its list of runs. "
                "Its runs wait in the queue. Stop one of the servers, or give it another STUDIO_HOME."
            )
        atomic_write(file, name)
        self._alone_at = time.monotonic()
        if self._has_waited and (notice := self.store.repair()):
            self._notify(notice)
        self._has_waited = False

    def _supervises(self) -> bool:
        if self._lock.is_locked:
            return True
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return False
        delete_leftovers(self.store.home)
        return True

    def _begin(self, run: Run) -> None:
        """Start a run; an error fails that run and not the queue."""
        if not run.folder_exists:
            self.store.finish(run.id, "failed", "The files of this run are gone. Delete it, and start a new one.")
            return
        try:
            process = child.spawn([*self._command, run.id], run.log)
        except StudioError as error:
            self.store.finish(run.id, "failed", str(error))
            return
        self._children[run.id] = process
        if process.poll() is None:
            self.store.mark_running(run.id, process.pid)

    def _record_ends(self) -> None:
        for run_id, process in [*self._children.items()]:
            code = process.poll()
            if code is None:
                continue
            del self._children[run_id]
            run = next((each for each in self.store.list() if each.id == run_id), None)
            # The run may have been deleted or queued again meanwhile, or its process may have ended before it started.
            if run is not None and run.state == ("running" if run.pid == process.pid else "queued"):
                self._record(run, code)

    def _record(self, run: Run, code: int) -> None:
        """Store the outcome of a run whose process did not store it."""
        state, message = recorded_outcome(run) or _silent_end(run, code)
        self.store.finish(run.id, state, message)

    def _escalate_cancel(self, run: Run) -> None:
        """Let a cancelled run finish its step, then send SIGTERM, then SIGKILL."""
        if not run.cancel_requested or run.pid is None:
            self._term_at.pop(run.id, None)
            return
        if run.id not in self._term_at:
            self._term_at[run.id] = time.monotonic() + max(self._step_s, STEPS_WAITED * _seconds_per_step(run))
        late = time.monotonic() - self._term_at[run.id]
        if late > self._end_s:
            child.end_group(run.pid, signal.SIGKILL)
        elif late > 0:
            child.end_group(run.pid, signal.SIGTERM)


def _seconds_per_step(run: Run) -> float:
    """Return the mean time of a step, with evaluations; 0 before the first one is logged."""
    return figures(run.events.read()).get("step_s") or 0.0


def _silent_end(run: Run, code: int) -> tuple[Ending, str]:
    if code < 0:
        return "interrupted", f"{child.killed(code)} The run can be resumed."
    return "failed", f"The process failed with exit code {code}: {tail(run.log) or 'its log is empty'}"


def name_for(owner: str, run: Run) -> str:
    """Return a run's name, hidden from other owners."""
    return f"“{run.name}”" if run.is_of(owner) else "Another user's run"


def tail(log: Path, most: int = 2000) -> str:
    """Return the last line of a log that is neither blank nor a warning."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - most))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip() and "warn" not in line.lower()), "")
