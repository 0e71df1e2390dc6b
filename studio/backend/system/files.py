"""Free disk space, checksums, and writes that survive a power cut.

read_json(folder / "about.json")                            # None if the file is missing or damaged
atomic_write(folder / "run.json", text)                     # the old content or all of the new content
publish(part, folder)                                       # rename a folder once all of its files are on the disk
raise unwritable(folder, error) from error                  # what is wrong and what to do
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from studio.backend.system.plan import free_disk
from studio.errors import StudioError

BLOCK = 1 << 20
# Some mounted storage can't sync folders, only files.
NO_SYNC = (errno.EINVAL, errno.ENOTSUP)


def require_space(folder: Path, need_bytes: int, variable: str = "STUDIO_HOME") -> None:
    """Raise StudioError if the disk under `folder`, which `variable` names, has less than `need_bytes` free."""
    free = free_disk(folder)
    if free < need_bytes:
        raise StudioError(
            f"The disk is too full: {need_bytes / 2**30:.1f} GiB are needed under {folder} and {free / 2**30:.1f} GiB "
            f"are free. Free some space, or set {variable} to a folder on another disk."
        )


def make_private(folder: Path) -> None:
    """Create a folder that no other account of this machine can open; an existing one is closed to them."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & 0o077:
        with suppress(OSError):  # it belongs to another account, or the storage has no permissions
            folder.chmod(0o700)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(file: Path) -> dict[str, Any] | None:
    """Return a small JSON object; None if the file is missing, can't be read or holds something else."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def unwritable(path: Path, error: OSError, remedy: str = "", need_bytes: int = 2**20) -> StudioError:
    """Return an error that tells a full disk from missing permissions.

    Args:
        remedy: a further sentence.
        need_bytes: space that the write needs.
    """
    if is_full(error):
        need = max(1, -(-need_bytes // 2**20))
        problem = (
            f"The disk is full, so {path} can't be written. Free at least {need:,} MiB, for example by deleting runs."
        )
    else:
        problem = f"{path} can't be written ({error.strerror or error}). Check its permissions and the disk."
    return StudioError(f"{problem} {remedy}".strip())


def is_full(error: Exception) -> bool:
    """Return whether a disk or its quota is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def atomic_write(path: Path, data: str | bytes, mode: int = 0o666) -> None:
    """Write a file atomically: readers see the old or the new content, also after a power cut.

    Args:
        mode: permissions of a new file, before the umask; 0o600 keeps secrets from other accounts at every moment.

    Raises:
        OSError: the folder can't be written, or the disk is full; the old file is unchanged.
    """
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    sync(path.parent)


def publish(part: Path, folder: Path) -> None:
    """Rename a complete folder once all of its files are on the disk.

    Raises:
        OSError: the disk is full or can't be written.
    """
    sync_all(part)
    part.rename(folder)
    sync(folder.parent)


def sync_all(folder: Path) -> None:
    """Wait until a folder and everything in it is on the disk."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Wait until a file, or the list of a folder's files, is on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in NO_SYNC or not path.is_dir():
            raise
    finally:
        os.close(opened)
