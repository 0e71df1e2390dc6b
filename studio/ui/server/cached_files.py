"""Uploaded files in Gradio's cache: only for the visitors who uploaded them, and only until their event has ended.

    files = CachedFiles()
    files.claim("/tmp/gradio/3f2a/rows.csv", owner)
    files.refuses("/tmp/gradio/x/../3f2a/rows.csv", other)      # True: the paths are compared after resolving them
    files.release(named_in(data), owner)                        # deletes the file, unless another owner has it too

Gradio gives a file to everybody who knows its path, and keeps it for a day. Only the event loop uses this.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from starlette.types import Scope

logger = logging.getLogger(__name__)
FILES = 20_000
PATHS = 64
"""In one event; an upload has at most 16 files. Each is resolved in the event loop."""
LONGEST_PATH = 4096
"""Of Linux; longer ones would take long to resolve."""


class CachedFiles:
    """The owners of each file; everybody else is refused, also for files that nobody has uploaded."""

    def __init__(self, files: int = FILES) -> None:
        self.files = files
        self._owners: OrderedDict[str, set[str]] = OrderedDict()

    def claim(self, path: str, owner: str) -> None:
        """Add an owner: two visitors may upload the same file, which Gradio stores once."""
        self._owners.setdefault(_real(path), set()).add(owner)
        while len(self._owners) > self.files:
            self._owners.popitem(last=False)

    def refuses(self, path: str, owner: str) -> bool:
        """Return whether a file belongs to others only. A single user, the owner "", gets every file."""
        return bool(owner) and owner not in self._owners.get(_real(path), ())

    def refuses_any(self, paths: Iterable[str], owner: str) -> bool:
        """Return whether one of the paths is refused, or there are too many."""
        some = [*islice(paths, PATHS + 1)]
        return len(some) > PATHS or any(self.refuses(each, owner) for each in some)

    def release(self, paths: Iterable[str], owner: str) -> None:
        """Delete an owner's files, whose content was stored elsewhere or refused."""
        for path in map(_real, paths):
            owners = self._owners.get(path, set())
            if owner not in owners:
                continue
            owners.remove(owner)
            if not owners:
                del self._owners[path]
                _delete(path)


def named_in(value: Any) -> Iterator[str]:
    """Yield the path of every file that Gradio would open for an event with this data, however deep it is nested.

    Gradio opens no plain strings, only objects with a path.
    """
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, dict):
            if isinstance(each.get("path"), str):
                yield each["path"]
            left.extend(each.values())
        elif isinstance(each, list | tuple):
            left.extend(each)


def owner_in(scope: Scope) -> str:
    """Return the owner of a request. A client without cookies is another one in each request, and so has no files."""
    return scope.get("state", {}).get("owner", "")


def _real(path: str) -> str:
    """Return the path that Gradio opens, without links; a URL and an impossible path become paths of no file."""
    if len(path) > LONGEST_PATH:
        return ""
    try:
        return str(Path(os.path.abspath(path)).resolve())  # noqa: PTH100  like Gradio, which resolves `..` before links
    except ValueError:  # a null character
        return ""


def _delete(path: str) -> None:
    try:
        Path(path).unlink(missing_ok=True)
    except OSError as error:
        logger.warning("an uploaded file can't be deleted: %s", error.strerror)
