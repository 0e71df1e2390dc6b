"""Answers in progress by browser session, so that another request can stop them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from studio.errors import StudioError


class Run:
    """An answer in progress. `discarded` means that the conversation was closed and the rest is not needed."""

    def __init__(self) -> None:
        self.cancel = threading.Event()
        self.discarded = False


class Running:
    """The answers in progress, at most one per session.

    Args:
        busy: error message when a session asks for a second answer.
    """

    def __init__(self, busy: str = "An answer is still being written. Stop it or wait until it is complete.") -> None:
        self.busy = busy
        self._runs: dict[str, Run] = {}
        self._lock = threading.Lock()

    @contextmanager
    def answer(self, session: str) -> Iterator[Run]:
        """Register an answer. Raise StudioError if the session already has one in progress."""
        self.check_idle(session)
        run = Run()
        with self._lock:
            self._runs[session] = run
        try:
            yield run
        finally:
            run.cancel.set()
            with self._lock:
                if self._runs.get(session) is run:
                    del self._runs[session]

    def check_idle(self, session: str) -> None:
        if self.is_busy(session):
            raise StudioError(self.busy)

    def is_busy(self, session: str) -> bool:
        run = self._runs.get(session)
        return run is not None and not run.cancel.is_set()

    def stop(self, session: str, discard: bool = False) -> None:
        run = self._runs.get(session)
        if run is not None:
            run.discarded = run.discarded or discard
            run.cancel.set()
