"""Files that people bring for training, kept as long as a run needs them.

    upload = keep(Path("/tmp/gradio/rows.csv"), owner)      # 32 hexadecimal digits: all that a page may name
    find(upload, owner)                                     # <home>/uploads/<upload>/rows.csv

A page knows neither paths nor other people's uploads. Where several people use one server, only who brought a file
finds it; the empty owner, that of a studio of one person, finds all.
"""

from __future__ import annotations

import re
import shutil
import time
import uuid
from pathlib import Path

from studio.backend.data.rows import Limits
from studio.backend.hosting import demo
from studio.backend.runs.store import RunStore
from studio.backend.system.files import atomic_write, require_space
from studio.backend.system.home import home
from studio.errors import StudioError

OWNER = ".owner"
"""Beside the file, whose it is. No file that is brought begins with a dot."""
UNUSED_S = 24 * 3600.0
"""How long a file is kept that no run uses."""


def keep(file: Path, owner: str = "") -> str:
    """Copies a file that arrived, under its own name.

    Raises:
        StudioError: it is empty or too large, or the disk is full.
    """
    limits, size = demo.limits(), file.stat().st_size
    limit = limits.file_bytes if limits else Limits().file_bytes
    if not size:
        raise StudioError(f"{file.name} is empty. Choose a file with rows in it.")
    if size > limit:
        raise StudioError(
            f"{file.name} has {size / 2**20:,.0f} MiB, and at most {limit / 2**20:,.0f} are read. Split it, or train "
            "from a terminal, where the file can stay where it is."
        )
    folder = new_folder(owner)
    try:
        require_space(folder, size)
        shutil.copyfile(file, folder / _clean_name(file.name))
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise _full(error) from error
    except StudioError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder.name


def new_folder(owner: str = "") -> Path:
    """An empty one for a file that is found by the folder's name and deleted as if it had been brought.

    Raises:
        StudioError: it can't be made.
    """
    folder = _folder() / uuid.uuid4().hex
    try:
        folder.mkdir(parents=True)
        if owner:
            (folder / OWNER).write_text(owner, encoding="utf-8")
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise _full(error) from error
    return folder


def find(upload: str, owner: str = "") -> Path:
    """The file.

    Raises:
        StudioError: the owner has none of that number (any more).
    """
    folder = _folder() / upload if re.fullmatch("[0-9a-f]{32}", upload) else None
    files = [file for file in folder.iterdir() if file.name != OWNER] if folder is not None and folder.is_dir() else []
    if folder is None or not files or owner not in ("", _owner_of(folder)):
        raise StudioError("The uploaded file is no longer here: it is deleted a day later. Upload it again.")
    return files[0]


def transfer_owner(before: str, after: str) -> None:
    """All of one owner's become another's. Raises StudioError: the disk can't be written."""
    try:
        for folder in _folder().glob("*"):
            if _owner_of(folder) == before:
                atomic_write(folder / OWNER, after)
    except OSError as error:
        raise _full(error) from error


def clean(store: RunStore) -> None:
    """Deletes what no run uses and nobody brought in the last day."""
    if not _folder().is_dir():
        return
    used = {Path(run.data).parent for run in store.list()}
    for folder in _folder().iterdir():
        if folder not in used and time.time() - folder.stat().st_mtime > UNUSED_S:
            shutil.rmtree(folder, ignore_errors=True)


def _owner_of(folder: Path) -> str:
    file = folder / OWNER
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _full(error: OSError) -> StudioError:
    return StudioError(f"{_folder()} can't be written ({error.strerror}). Free some disk space.")


def _folder() -> Path:
    return (home() / "uploads").resolve()


def _clean_name(name: str) -> str:
    """Letters, digits and a few signs; the end of it, which says what kind of file it is."""
    return re.sub(r"[^\w.-]", "_", name)[-80:].lstrip(".") or "rows"
