"""ZeroGPU Spaces: one call at a time gets a GPU, for some seconds, in a process forked for that call.

    from studio.backend.system import zero_gpu   # before torch, because `spaces` must be imported first

    @zero_gpu.lent(lambda tokens: 15 + tokens // 12)
    def answer(tokens): ...                      # has a GPU on a ZeroGPU Space; unchanged elsewhere

Arguments and results of such a function are pickled, and its side effects are lost with its process. Of an exception,
only the class name reaches the caller, so return the messages that users should read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

ACTIVE = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
"""Whether this is a ZeroGPU Space, by the same test as in `spaces`."""

if ACTIVE:
    import spaces

LONGEST_S = 120
"""Maximum seconds of quota per call. It is a day's quota of a visitor without an account; longer calls are refused."""
DEAREST = 1.5
"""The most seconds of quota that `spaces` counts for a second on any of its GPUs."""
_process = os.getpid()


def lent(seconds: Callable[..., float]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Run a function, or a generator, on a GPU for `seconds(*arguments)` seconds."""
    if not ACTIVE:
        return lambda function: function
    return spaces.GPU(duration=lambda *arguments: int(granted(seconds(*arguments))))


def granted(seconds: float) -> float:
    """Return the seconds of GPU time that a call may ask for at most."""
    return min(seconds, LONGEST_S / DEAREST)


def waits() -> bool:
    """Return whether this process only emulates a GPU.

    On a ZeroGPU Space, every process does so except those forked for a call.
    """
    return ACTIVE and os.getpid() == _process
