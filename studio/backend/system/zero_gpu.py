"""ZeroGPU Spaces: a GPU is lent to one call at a time, for seconds, in a process that is forked for it.

    from studio.backend import zero_gpu          # before torch, which `spaces` must come before

    @zero_gpu.lent(lambda tokens: 15 + tokens // 12)
    def answer(tokens): ...                      # has a GPU on such a Space; elsewhere it is the plain function

What goes into such a function and comes out of it is pickled, and what it changes is lost with its process. An error
that it raises arrives as no more than its class's name, so one that a person should read has to be returned.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

ACTIVE = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
"""Whether this is such a Space; `spaces` itself asks the same way."""

if ACTIVE:
    import spaces
    from spaces.zero import wrappers

LONGEST_S = 120
"""More than that is refused to visitors without an account for a whole day's worth."""


def lent(seconds: Callable[..., float]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives a function, or a generator, a GPU for as many seconds as `seconds` makes of its arguments."""
    if not ACTIVE:
        return lambda function: function
    return spaces.GPU(duration=lambda *arguments: int(min(seconds(*arguments), LONGEST_S)))


def waits() -> bool:
    """Whether this process has no GPU but plays that it had, as every process of such a Space does but those that are
    forked for a call."""
    return ACTIVE and not wrappers.forked
