"""The memory, the cores and the disk that this process may use: the machine's, or less in a container or on a Space.

    os.environ.update(thread_limits())      # before torch is imported
    available_memory()                      # bytes
    free_disk(home()), total_disk(home())   # bytes

A Space sees the memory, the cores and the disk of its host. Its plan is in the variables `MEMORY` and `CPU_CORES`, but
not the disk: the smallest plan has 50 GB, and `STUDIO_DISK_GIB` names another size.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from studio.backend.system.home import home, is_mounted
from studio.errors import StudioError

GIB = 2**30
SPACE_DISK_GIB = 46.0
"""50 GB."""
CGROUP = Path("/sys/fs/cgroup")
# Limit, use and statistics of a control group, and how names begin there; the first of version 2, the second of 1.
CONTROL_FILES = (
    ("memory.max", "memory.current", "memory.stat", ""),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_"),
)
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def total_memory() -> int:
    """Return the bytes of memory that this process and its children may use."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _limits())])


def available_memory() -> int:
    """Return the bytes of memory that are still free."""
    return max(0, min([psutil.virtual_memory().available, *(limit - used for limit, used in _limits())]))


def cores() -> int:
    """Return the number of processors that this process may use."""
    counts = [float(os.cpu_count() or 1)]
    if hasattr(os, "sched_getaffinity"):
        counts.append(len(os.sched_getaffinity(0)))
    if quota := _cpu_quota():
        counts.append(quota)
    if is_space():
        with suppress(ValueError):
            counts.append(float(os.environ.get("CPU_CORES", "")))
    return max(1, math.ceil(min(counts)))


def thread_limits() -> dict[str, str]:
    """Return the variables that keep torch, also in child processes, from starting a thread for each core of the host.

    Empty if all cores may be used, or if somebody has set the variable.
    """
    is_free = "OMP_NUM_THREADS" in os.environ or cores() >= (os.cpu_count() or 1)
    return {} if is_free else {"OMP_NUM_THREADS": str(cores())}


def free_disk(folder: Path) -> int:
    """Return the free bytes for files in the folder, which may not exist yet.

    Raises:
        StudioError: `$STUDIO_DISK_GIB` is not a number.
    """
    there = _existing(folder)
    free, limit = shutil.disk_usage(there).free, _disk_limit(there)
    return free if limit is None else max(0, min(free, limit - sum(map(size, _written()))))


def total_disk(folder: Path) -> int:
    """Return the bytes of the disk of a folder, used and free; errors as for `free_disk`."""
    there = _existing(folder)
    total, limit = shutil.disk_usage(there).total, _disk_limit(there)
    return total if limit is None else min(total, limit)


def size(folder: Path) -> int:
    """Return the bytes of all files in the folder, without files that are deleted meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(parent, name).lstat().st_size
    return total


def is_space() -> bool:
    return bool(os.environ.get("SPACE_ID"))


def _limits() -> Iterator[tuple[int, int]]:
    """Yield the memory limits of the container and of the plan, each with the bytes that count against it."""
    for most, used, statistics, prefix in CONTROL_FILES:
        limit, spent = _bytes(_text(most)), _bytes(_text(used))
        # Without a limit of its own, the group may be that of the whole host.
        if limit is not None and spent is not None and limit < psutil.virtual_memory().total:
            cached = re.findall(rf"^{prefix}(?:in)?active_file (\d+)$", _text(statistics), re.MULTILINE)
            yield limit, spent - sum(map(int, cached))
    if is_space() and (limit := _bytes(os.environ.get("MEMORY", ""))):
        known = [process.info["memory_info"] for process in psutil.process_iter(["memory_info"])]
        yield limit, sum(memory.rss for memory in known if memory is not None)


def _cpu_quota() -> float | None:
    """Return the processors that the container may keep busy, or None without a limit."""
    texts = _text("cpu.max").split() or [_text("cpu/cpu.cfs_quota_us"), _text("cpu/cpu.cfs_period_us")]
    quota, period = (*texts, "", "")[:2]
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _text(name: str) -> str:
    """Return the content of a file of the control group; empty if there is none."""
    try:
        return (CGROUP / name).read_text().strip()
    except OSError:
        return ""


def _bytes(text: str) -> int | None:
    """Return the bytes in "17179869184" or "16Gi", or None if the text is neither, such as "max"."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)i?B?", text.strip())
    return int(float(found[1]) * UNITS[found[2]]) if found else None


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())


def _disk_limit(folder: Path) -> int | None:
    """Return the bytes that the studio may use on the disk of a folder; None for the whole disk."""
    if is_mounted(folder):
        return None
    text = os.environ.get("STUDIO_DISK_GIB", str(SPACE_DISK_GIB) if is_space() else "")
    try:
        return int(float(text) * GIB) if text else None
    except ValueError as error:
        raise StudioError(
            f"STUDIO_DISK_GIB must be a number of GiB, such as {SPACE_DISK_GIB:g}, not {text!r}."
        ) from error


def _written() -> list[Path]:
    """Return the folders on the local disk that the studio and its libraries write, none inside another."""
    caches = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    folders = {folder.resolve() for folder in (home(), caches, Path(tempfile.gettempdir()))}
    return [
        folder for folder in folders
        if not is_mounted(folder) and not any(other in folder.parents for other in folders)
    ]  # fmt: skip
