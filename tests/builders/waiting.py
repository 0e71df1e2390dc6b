"""The one way in which tests wait for what happens elsewhere: in a thread, a process or a file."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], seconds: float = 60.0) -> T:
    """What the condition gives once it is true of it.

    Raises:
        AssertionError: that never happened.
    """
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"it did not happen in {seconds:g} seconds"
        time.sleep(0.02)
    return value
