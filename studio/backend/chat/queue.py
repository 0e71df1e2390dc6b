"""A first-come, first-served queue in front of the model. Every waiting request gets its place.

Requests of the same group can hold the model together.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager


class Queue:
    """Grant the model to one request at a time, or to several requests of one group.

    with queue.join() as ticket:
        for place in ticket.wait(): ...
        ...                                 # holds the model until the block ends

    Args:
        limit: returns how many requests of a group can hold the model together.
    """

    def __init__(self, limit: Callable[[], int] = lambda: 1) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._tickets: deque[Ticket] = deque()

    @contextmanager
    def join(self, group: Hashable = None) -> Iterator[Ticket]:
        """Add a request to the end of the queue.

        Args:
            group: what requests that hold the model together have in common; None holds it alone.
        """
        ticket = Ticket(self._changed, self._tickets, group, self._limit)
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
    def __init__(
        self, changed: threading.Condition, tickets: deque[Ticket], group: Hashable, limit: Callable[[], int]
    ) -> None:
        self._changed = changed
        self._tickets = tickets
        self._group = group
        self._limit = limit
        self._holds = False

    def wait(self, cancelled: Callable[[], bool] = lambda: False, interval_s: float = 0.1) -> Iterator[int]:
        """Yield the place whenever it changes: 1 is next. End when the model is granted or the wait is cancelled."""
        told = 0
        while not cancelled():
            with self._changed:
                ahead = list(self._tickets)[: self._tickets.index(self)]
                if self._may_hold(ahead):
                    self._holds = True
                    return
                place = sum(not ticket._holds for ticket in ahead[1:]) + 1
                if place == told:
                    self._changed.wait(interval_s)
                    continue
                told = place
            yield place

    def _may_hold(self, ahead: list[Ticket]) -> bool:
        if not ahead:
            return True
        is_shared = self._group is not None and all(ticket._group == self._group for ticket in ahead)
        return is_shared and len(ahead) < self._limit()
