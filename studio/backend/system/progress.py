"""The progress callback of long operations."""

from __future__ import annotations

import time
from collections.abc import Callable

Progress = Callable[[float, str], None]


def reading(report: Progress) -> Callable[[int, int], None]:
    """Return a callback of (bytes read, total bytes) that reports them with the time left, up to ten times a second."""
    started = told = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told < 0.1 or not done:
            return
        told = now
        left = (now - started) * (total - done) / done
        report(done / total, f"Reading the weights: {done / 1e9:.1f} of {total / 1e9:.1f} GB, {left:.0f} s left")

    return tell
