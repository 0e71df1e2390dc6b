"""The disk space that runs, uploads, results and adapters may use: all of them together, and those of one owner.

    require_room(store, owner, file_bytes)          # raises StudioError before anything is stored
    for folder in owned(store, "user:ada"): ...     # everything that belongs to an owner

Every run, upload and uploaded adapter has a folder: <home>/runs/<id>, <home>/uploads/<id>, <home>/adapters/<id>.
Exports are in the folder of their run, and classified files are uploads.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

from studio.backend.hosting import demo
from studio.backend.runs.store import RunStore
from studio.backend.system.files import read_json, require_space
from studio.backend.system.plan import size, total_disk
from studio.errors import StudioError

GIB = 2**30
QUOTA_GIB = 50.0
# The part of the quota that one owner can use, if there are several.
SHARE = 0.5
OWNER = ".owner"
"""File in an upload's folder that stores its owner."""
ABOUT = "about.json"
"""The same for an uploaded adapter."""
REMEDY = "Delete what is no longer needed: it is listed under Storage in the Fine-tune tab"


def require_room(store: RunStore, owner: str = "", more_bytes: int = 0) -> None:
    """Raise StudioError if the disk is full, or `more_bytes` would exceed the quota or the owner's part of it.

    Args:
        owner: who stores them; the empty owner of a studio for one person may use all of the quota.
    """
    require_space(store.home, more_bytes)
    limits = demo.limits()
    quota = limits.quota_gib if limits else quota_gib(store.home)
    used = (sum(size(store.home / name) for name in ("runs", "uploads", "adapters")) + more_bytes) / GIB
    if used > quota:
        raise StudioError(
            f"There is no room: runs, uploads and adapters would use {used:.1f} GiB, and the quota is {quota:g} GiB. "
            f"{REMEDY}."
        )
    own = (sum(map(size, owned(store, owner))) + more_bytes) / GIB if owner else 0.0
    if own > quota * SHARE:
        raise StudioError(
            f"There is no room: your runs, uploads and adapters would use {own:.1f} GiB, and your part of the quota is "
            f"{quota * SHARE:g} GiB. {REMEDY}."
        )


def delete_leftovers(home: Path, age_s: float = 0.0) -> None:
    """Delete what exports and imports of a killed server left.

    Args:
        age_s: how long ago they were last changed, at least. A server that takes over the home may delete all of them;
            later, another server may be writing some.
    """
    for folder in (*home.glob("runs/*/exports/.*"), *home.glob("adapters/.*.part")):
        with suppress(OSError):  # it was deleted meanwhile
            if time.time() - folder.stat().st_mtime >= age_s:
                shutil.rmtree(folder, ignore_errors=True)


def owned(store: RunStore, owner: str) -> list[Path]:
    """Return the folders of an owner's runs, uploads and adapters."""
    uploads = [each for each in (store.home / "uploads").glob("*") if owner_of_upload(each) == owner]
    adapters = [each for each in (store.home / "adapters").glob("*") if owner_of_adapter(each) == owner]
    return [*(run.folder for run in store.list(owner)), *uploads, *adapters]


def owner_of_upload(folder: Path) -> str | None:
    """Return the owner of an upload, "" in a studio for one person, or None if it can't be read."""
    file = folder / OWNER
    try:
        return file.read_text(encoding="utf-8") if file.is_file() else ""
    except (OSError, UnicodeDecodeError):
        return None


def owner_of_adapter(folder: Path) -> str | None:
    """Return the owner of an uploaded adapter, or None if it can't be read."""
    owner = (read_json(folder / ABOUT) or {}).get("owner")
    return owner if isinstance(owner, str) else None


def quota_gib(home: Path) -> float:
    """Return the quota for all runs, uploads and adapters in GiB; by default 50 GiB, or half of a smaller disk.

    Raises:
        StudioError: `$STUDIO_QUOTA_GIB` is not a number.
    """
    text = os.environ.get("STUDIO_QUOTA_GIB")
    if text is None:
        return min(QUOTA_GIB, total_disk(home) / 2 / GIB)
    try:
        return float(text)
    except ValueError as error:
        raise StudioError(f"STUDIO_QUOTA_GIB must be a number of GiB, such as {QUOTA_GIB:g}, not {text!r}.") from error
