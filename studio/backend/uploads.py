"""Files that people bring for training, kept as long as a run needs them.

    upload = keep(Path("/tmp/gradio/rows.csv"))     # 32 hexadecimal digits: all that a page may name
    find(upload)                                    # <home>/uploads/<upload>/rows.csv

A page knows neither paths nor other people's uploads: the number is the right to use the file.
"""

from __future__ import annotations

import re
import shutil
import time
import uuid
from pathlib import Path

from studio.backend import demo
from studio.backend.download import require_space
from studio.backend.home import home
from studio.backend.rows import Limits
from studio.backend.runs import RunStore
from studio.errors import StudioError

UNUSED_S = 24 * 3600.0
"""How long a file is kept that no run uses."""


def keep(file: Path) -> str:
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
    folder = _folder() / uuid.uuid4().hex
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        require_space(folder.parent, size)
        folder.mkdir()
        shutil.copyfile(file, folder / _clean_name(file.name))
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise StudioError(f"{folder.parent} can't be written ({error.strerror}). Free some disk space.") from error
    return folder.name


def find(upload: str) -> Path:
    """The file.

    Raises:
        StudioError: there is none (any more).
    """
    folder = _folder() / upload if re.fullmatch("[0-9a-f]{32}", upload) else None
    files = [*folder.iterdir()] if folder is not None and folder.is_dir() else []
    if not files:
        raise StudioError("The uploaded file is no longer here: it is deleted a day later. Upload it again.")
    return files[0]


def clean(store: RunStore) -> None:
    """Deletes what no run uses and nobody brought in the last day."""
    if not _folder().is_dir():
        return
    used = {Path(run.data).parent for run in store.list()}
    for folder in _folder().iterdir():
        if folder not in used and time.time() - folder.stat().st_mtime > UNUSED_S:
            shutil.rmtree(folder, ignore_errors=True)


def _folder() -> Path:
    return (home() / "uploads").resolve()


def _clean_name(name: str) -> str:
    """Letters, digits and a few signs; the end of it, which says what kind of file it is."""
    return re.sub(r"[^\w.-]", "_", name)[-80:].lstrip(".") or "rows"
