"""A first-come, first-served queue in front of the model. Every waiting request gets its place."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Queue:
    """Grant the model to one request at a time.

    with queue.join() as ticket:
        for place in ticket.wait(): ...
        ...                                 # holds the model until the block ends
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._tickets: deque[Ticket] = deque()

    @contextmanager
    def join(self) -> Iterator[Ticket]:
        ticket = Ticket(self._changed, self._tickets)
        with self._changed:
            self._tickets.append(ticket)
        try:
            yield ticket
        finally:
            with self._changed:
                self._tickets.remove(ticket)
                self._changed.notify_all()

    def __len__(self) -> int:
        return len(self._tickets)


class Ticket:
    def __init__(self, changed: threading.Condition, tickets: deque[Ticket]) -> None:
        self._changed = changed
        self._tickets = tickets

    def wait(self, cancelled: Callable[[], bool] = lambda: False, interval_s: float = 0.1) -> Iterator[int]:
        """Yield the number of tickets ahead whenever it changes. End when it is 0 or the wait is cancelled."""
        told = 0
        while not cancelled():
            with self._changed:
                ahead = self._tickets.index(self)
                if ahead == told:
                    if ahead == 0:
                        return
                    self._changed.wait(interval_s)
                    continue
                told = ahead
            if ahead:
                yield ahead
