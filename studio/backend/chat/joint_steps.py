"""Several answers with one model: their next tokens in one step, and pieces of prompts between two steps.

    joint = JointSteps(native.together, MAX_TOKENS)
    logits = joint.step(owner, sequence)        # in the thread of each answer
    with joint.alone(): ...                     # reads a piece of a prompt

The thread that calls first processes the tokens of all. It waits for the answers that took part in the step before, but
no longer than that step took, so that a slow reader can't hold the others.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(eq=False)
class Call:
    owner: Hashable
    sequence: Any
    logits: Tensor | None = None
    error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self.logits is not None or self.error is not None


class JointSteps:
    """Collect the steps of several threads.

    Args:
        together: processes tokens of different sequences; returns the logits `[n, vocabulary]`.
        most: the largest n.
    """

    def __init__(self, together: Callable[[Sequence[Any]], Tensor], most: int) -> None:
        self._together, self._most = together, most
        self._changed = threading.Condition()
        self._calls: list[Call] = []
        self._pieces: deque[object] = deque()
        """Threads that wait to read a piece of a prompt."""
        self._busy = False
        self._piece_is_next = True
        """Whether there has been a step since the last piece."""
        self._expected: set[Hashable] = set()
        """Owners of the last step."""
        self._until = 0.0
        """When to stop waiting for them."""

    def step(self, owner: Hashable, sequence: Any) -> Tensor:
        """Return the logits `[1, vocabulary]` of the owner's next token."""
        call = Call(owner, sequence)
        with self._changed:
            self._calls.append(call)
            self._changed.notify_all()
            while not call.done:
                if self._may_step():
                    self._lead()
                else:
                    self._changed.wait(None if self._is_blocked() else max(self._until - time.perf_counter(), 0.0))
        if call.error is not None:
            raise call.error
        assert call.logits is not None
        return call.logits

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Use the model alone inside the block, between two steps of others; first come, first served."""
        place = object()
        with self._changed:
            self._pieces.append(place)
            try:
                self._changed.wait_for(lambda: self._pieces[0] is place and self._may_read())
            finally:
                self._pieces.remove(place)
            self._busy, self._piece_is_next = True, False
        try:
            yield
        finally:
            self._release()

    def _is_blocked(self) -> bool:
        return self._busy or bool(self._pieces and self._piece_is_next)

    def _may_read(self) -> bool:
        return not self._busy and (self._piece_is_next or not self._calls)

    def _may_step(self) -> bool:
        if self._is_blocked() or not self._calls:
            return False
        is_complete = len(self._calls) >= self._most or self._expected <= {call.owner for call in self._calls}
        return is_complete or time.perf_counter() >= self._until

    def _lead(self) -> None:
        """Process the calls so far. The caller holds the lock, which is released meanwhile."""
        calls, self._calls = self._calls[: self._most], self._calls[self._most :]
        self._busy = True
        self._changed.release()
        began = time.perf_counter()
        try:
            logits = self._together([call.sequence for call in calls])
            for i, call in enumerate(calls):
                call.logits = logits[i : i + 1]
        except BaseException as error:
            for call in calls:
                call.error = error
            raise
        finally:
            self._changed.acquire()
            now = time.perf_counter()
            self._expected, self._until = {call.owner for call in calls}, now + (now - began)
            self._busy, self._piece_is_next = False, True
            self._changed.notify_all()

    def _release(self) -> None:
        with self._changed:
            self._busy = False
            self._changed.notify_all()
