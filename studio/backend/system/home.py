"""Where the studio keeps models, downloads and runs: `$STUDIO_HOME`, else the platform's user data folder.

home() / "models"                    # files
local(home()) / "runs.sqlite3"       # databases and locks, which mounted storage has no place for
"""

from __future__ import annotations

import os
from functools import cache
from hashlib import sha256
from pathlib import Path

import psutil
from platformdirs import user_cache_path, user_data_path

NAME = "jetmoe-studio"
# Storage buckets and other machines' disks, whose locks may hold nobody off.
MOUNTED = ("fuse", "nfs", "cifs", "smb", "9p", "ceph", "gluster")
# Disks of this machine, although a program of its own reads them.
DISKS = ("fuseblk",)


def home() -> Path:
    configured = os.environ.get("STUDIO_HOME")
    return Path(configured).expanduser() if configured else user_data_path(NAME, appauthor=False)


def local(folder: Path) -> Path:
    """The folder itself, or one for it on the local disk: below `$STUDIO_LOCAL` if that is set, else in the user's
    cache where the folder is mounted storage."""
    configured = os.environ.get("STUDIO_LOCAL")
    if not configured and not is_mounted(folder):
        return folder
    below = Path(configured).expanduser() if configured else user_cache_path(NAME, appauthor=False)
    return below / sha256(str(folder.resolve()).encode()).hexdigest()[:16]


@cache
def is_mounted(folder: Path) -> bool:
    """Whether it lies on no disk of this machine."""
    path = folder.resolve()
    found = [part for part in psutil.disk_partitions(all=True) if path.is_relative_to(part.mountpoint)]
    if not found:
        return False
    kind = max(found, key=lambda part: len(part.mountpoint)).fstype.lower()
    return kind.startswith(MOUNTED) and kind not in DISKS
