"""Holds steps of other threads until a test allows them."""

from __future__ import annotations

import math
import threading


class Gate:
    """Open until it is held; then each step waits until it is allowed."""

    def __init__(self) -> None:
        self._allowed, self._changed = math.inf, threading.Condition()

    def hold(self) -> None:
        with self._changed:
            self._allowed = 0

    def allow(self, count: float = math.inf) -> None:
        with self._changed:
            self._allowed += count
            self._changed.notify_all()

    def wait(self) -> None:
        """Take one step."""
        with self._changed:
            self._changed.wait_for(lambda: self._allowed > 0)
            self._allowed -= 1
