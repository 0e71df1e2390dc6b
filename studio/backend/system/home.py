"""Where the studio stores models, downloads and runs: `$STUDIO_HOME`, else the platform's user data folder.

home() / "models"                    # files
local(home()) / "runs.sqlite3"       # databases and locks, which need a local disk
"""

from __future__ import annotations

import os
from functools import cache
from hashlib import sha256
from pathlib import Path

import psutil
from platformdirs import user_cache_path, user_data_path

NAME = "jetmoe-studio"
# File systems of storage buckets and network shares, where file locks are unreliable.
MOUNTED = ("fuse", "nfs", "cifs", "smb", "9p", "ceph", "gluster")
# Local disks with a FUSE driver.
DISKS = ("fuseblk",)


def home() -> Path:
    configured = os.environ.get("STUDIO_HOME")
    return Path(configured).expanduser() if configured else user_data_path(NAME, appauthor=False)


def local(folder: Path) -> Path:
    """Return the folder itself, or a folder that stands in for it on the local disk.

    With `$STUDIO_LOCAL` set, the stand-in is below that folder. Otherwise only mounted storage gets a stand-in, in the
    user's cache.
    """
    configured = os.environ.get("STUDIO_LOCAL")
    if not configured and not is_mounted(folder):
        return folder
    below = Path(configured).expanduser() if configured else user_cache_path(NAME, appauthor=False)
    return below / sha256(str(folder.resolve()).encode()).hexdigest()[:16]


@cache
def is_mounted(folder: Path) -> bool:
    """Return whether the folder is on mounted storage instead of a local disk."""
    path = folder.resolve()
    found = [part for part in psutil.disk_partitions(all=True) if path.is_relative_to(part.mountpoint)]
    if not found:
        return False
    kind = max(found, key=lambda part: len(part.mountpoint)).fstype.lower()
    return kind.startswith(MOUNTED) and kind not in DISKS
