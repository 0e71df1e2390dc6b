"""Free disk space, checksums and atomic writes."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from studio.backend.system.plan import free_disk
from studio.errors import StudioError

BLOCK = 1 << 20


def require_space(folder: Path, need_bytes: int, variable: str = "STUDIO_HOME") -> None:
    """Raise StudioError if the disk under `folder`, which `variable` names, has less than `need_bytes` free."""
    free = free_disk(folder)
    if free < need_bytes:
        raise StudioError(
            f"The disk is too full: {need_bytes / 2**30:.1f} GiB are needed under {folder} and {free / 2**30:.1f} GiB "
            f"are free. Free some space, or set {variable} to a folder on another disk."
        )


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def atomic_write(path: Path, data: str | bytes, mode: int = 0o666) -> None:
    """Write a file atomically: readers see the old content or all of the new content.

    Args:
        mode: permissions of a new file, before the umask; 0o600 keeps secrets from other accounts at every moment.

    Raises:
        OSError: the folder can't be written, or the disk is full; the old file is unchanged.
    """
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
