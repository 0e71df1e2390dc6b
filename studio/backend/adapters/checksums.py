"""SHA-256 of an adapter's files, so that a damaged adapter is refused instead of answering.

write_checksums(folder)                     # when the adapter is saved
require_undamaged(folder)                   # before it is used; an adapter of version 0.2 or older has no checksums
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from studio.backend.system.files import read_json, sha256
from studio.errors import StudioError

CHECKSUMS = "checksums.json"
REMEDY = "Restore it from a backup, or train or upload the adapter again."


def write_checksums(folder: Path) -> None:
    digests = {file.name: sha256(file) for file in sorted(folder.iterdir()) if file.is_file()}
    (folder / CHECKSUMS).write_text(json.dumps(digests))


def require_undamaged(folder: Path) -> None:
    """Raise StudioError if a file of the adapter is missing or has changed since it was saved."""
    file = folder / CHECKSUMS
    if not file.is_file():
        return
    digests = read_json(file)
    if digests is None:
        raise StudioError(f"The adapter is damaged: {file.name} can't be read. {REMEDY}")
    for name, digest in digests.items():
        require_digest(folder / str(name), digest)


def require_digest(file: Path, digest: str) -> None:
    """Raise StudioError if the file is missing or has another SHA-256."""
    try:
        stat = file.stat()
    except OSError as error:
        raise StudioError(f"The adapter is damaged: {file.name} can't be read. {REMEDY}") from error
    if _sha256(file, stat.st_size, stat.st_mtime_ns, stat.st_ino) != digest:
        raise StudioError(f"The adapter is damaged: {file.name} has changed since it was saved. {REMEDY}")


@lru_cache(maxsize=256)
def _sha256(file: Path, size: int, written: int, inode: int) -> str:
    """Return the SHA-256, cached per write, because an adapter is found many times."""
    return sha256(file)
