"""Keep the examples of large data sets on disk, by the content of their file and the settings of its reading.

    with part() as file:
        write_examples(examples, file)
        keep(key, file, {"format": "messages"})
    find(key)                             # (Examples, {"format": "messages"}), or None

<home>/rows/<key>.arrow holds the examples, and <key>.json the values next to it.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from studio.backend.data.examples import Examples
from studio.backend.system.files import atomic_write, make_private, read_json, unwritable
from studio.backend.system.home import home

LARGE = 32 << 20
"""Size of a file in bytes above which its examples are stored on disk."""
KEPT_BYTES = 4 << 30
"""Size above which the oldest data sets are deleted before another one is stored."""
VERSION = 3
"""Increase it when rows are read differently, so that older files are not used."""


def find(key: str) -> tuple[Examples, dict[str, Any]] | None:
    """Return the examples with this key, mapped from their file, and the values stored with them.

    None if they were not stored, or the values are damaged; they are then read and stored again.
    """
    file = _file(key)
    about = file.with_suffix(".json")
    values = read_json(about)
    if values is None or not file.is_file():
        return None
    file.touch()
    return Examples.open(file), values


@contextmanager
def part() -> Iterator[Path]:
    """Yield the path of a new file, which is deleted unless `keep` took it.

    Raises:
        StudioError: the disk is full.
    """
    file = _folder() / f".{uuid.uuid4().hex}.part"
    try:
        make_private(file.parent)
        _make_room(file.parent)
        yield file
    except OSError as error:
        raise unwritable(file.parent, error) from error
    finally:
        file.unlink(missing_ok=True)


def keep(key: str, file: Path, about: dict[str, Any]) -> None:
    file.rename(_file(key))
    atomic_write(_file(key).with_suffix(".json"), json.dumps(about))


def _make_room(folder: Path) -> None:
    files = sorted(folder.glob("*.arrow"), key=lambda file: file.stat().st_mtime)
    total = sum(file.stat().st_size for file in files)
    for file in files:
        if total <= KEPT_BYTES:
            return
        total -= file.stat().st_size
        file.with_suffix(".json").unlink(missing_ok=True)
        file.unlink(missing_ok=True)


def _file(key: str) -> Path:
    return _folder() / f"{hashlib.sha256(f'{VERSION} {key}'.encode()).hexdigest()[:32]}.arrow"


def _folder() -> Path:
    return home() / "rows"
