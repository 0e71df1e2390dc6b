"""The log of a training run, read from an offset on, as a page that follows it does.

part = read_log(run.log, after=-1)            # the end of the log
part = read_log(run.log, part.next)           # what was written since
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

PART = 256 * 1024
"""Bytes that one part has at most."""


class Part(NamedTuple):
    text: str
    start: int
    """Offset of the first byte in the file; above 0 if earlier lines are left out."""
    next: int
    """Offset of the byte after the last one."""
    size: int


def read_log(file: Path, after: int = -1, has_ended: bool = True) -> Part:
    """Return the lines after an offset, or the last ones if it is negative; at most `PART` bytes.

    An unfinished line is left out unless the run has ended. A file that is missing counts as empty, and one that is
    shorter than the offset is read from its start.
    """
    try:
        with file.open("rb") as log:
            size = log.seek(0, 2)
            start = max(0, size - PART) if after < 0 else after if after <= size else 0
            log.seek(start)
            if after < 0 and start:
                start += len(log.readline())  # of which the beginning is missing
            data = log.read(PART)
    except OSError:
        return Part("", 0, 0, 0)
    is_last = start + len(data) == size
    if not (is_last and has_ended):
        data = data[: data.rfind(b"\n") + 1 or (0 if len(data) < PART else PART)]
    return Part(data.decode(errors="replace"), start, start + len(data), size)
