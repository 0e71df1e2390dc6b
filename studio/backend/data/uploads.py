"""Store uploaded files for as long as a run needs them.

    upload = keep(Path("/tmp/gradio/rows.csv"), owner)      # 32 hexadecimal digits, the only handle that a page gets
    find(upload, owner)                                     # <home>/uploads/<upload>/rows.csv

A page has no access to paths or to other people's uploads. On a shared server, `find` returns a file only to its owner.
The empty owner, used in a studio for one person, can access all files.
"""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import time
import uuid
from pathlib import Path

from studio.backend.data.rows import Limits
from studio.backend.hosting import demo
from studio.backend.runs.room import OWNER, owner_of_upload, require_room
from studio.backend.runs.store import RunStore
from studio.backend.system.files import atomic_write, make_private, sync, sync_all, unwritable
from studio.backend.system.home import home
from studio.backend.system.plan import size as folder_size
from studio.errors import StudioError

UPLOAD_ID = "[0-9a-f]{32}"
UNUSED_S = 24 * 3600.0
"""Seconds after which a file that no run uses is deleted."""


def keep(file: Path, owner: str = "") -> str:
    """Store a copy of an uploaded file under its own name and return the upload's id.

    The same file of the same owner is stored once.

    Raises:
        StudioError: the file is empty or too large, the owner has too many, or the disk is full.
    """
    limits, size = demo.limits(), file.stat().st_size
    limit = limits.file_bytes if limits else Limits().file_bytes
    if not size:
        raise StudioError(f"{file.name} is empty. Choose a file with rows in it.")
    if size > limit:
        raise StudioError(
            f"{file.name} has {size / 2**20:,.0f} MiB; the limit is {limit / 2**20:,.0f} MiB. Split it, or train on "
            "the command line, which reads the file in place."
        )
    if same := _same(file, owner):
        os.utime(same)  # unused for a day from now on
        return same.name
    if limits and owner:
        _require_share(owner, size, limits.uploads_bytes)
    require_room(RunStore(), owner, size)
    folder = new_folder(owner)
    try:
        shutil.copyfile(file, folder / _clean_name(file.name))
        sync_all(folder)
        sync(folder.parent)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise unwritable(_folder(), error) from error
    return folder.name


def new_folder(owner: str = "") -> Path:
    """Create the empty folder of an upload; its name is the upload's id. `clean` deletes it like any other upload.

    Raises:
        StudioError: the folder can't be created.
    """
    folder = _folder() / uuid.uuid4().hex
    try:
        make_private(_folder())
        folder.mkdir()
        if owner:
            (folder / OWNER).write_text(owner, encoding="utf-8")
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise unwritable(_folder(), error) from error
    return folder


def find(upload: str, owner: str = "") -> Path:
    """Return the path of an uploaded file.

    Raises:
        StudioError: the owner has no such upload, or it was deleted.
    """
    folder = _folder() / upload
    files = _files_in(folder) if re.fullmatch(UPLOAD_ID, upload) else []
    if not files or owner not in ("", owner_of_upload(folder)):
        raise StudioError("The uploaded file is gone: unused files are deleted after a day. Upload it again.")
    return files[0]


def stored(owner: str = "") -> list[Path]:
    """Return the files and results of an owner; the empty owner sees all."""
    folders = [each for each in _folder().glob("*") if owner in ("", owner_of_upload(each))]
    return [file for folder in folders for file in _files_in(folder)]


def delete(upload: str, store: RunStore, owner: str = "") -> str:
    """Delete an uploaded file or a result, and return its name.

    Raises:
        StudioError: the owner has no such upload, a run uses it, or it can't be deleted.
    """
    file = find(upload, owner)
    if run := next((run for run in store.list() if Path(run.data) == file), None):
        raise StudioError(f"{file.name} is the data of the run “{run.name}”. Delete the run first.")
    try:
        shutil.rmtree(file.parent)
    except OSError as error:
        raise StudioError(f"{file.parent} can't be deleted ({error.strerror}). Delete it by hand.") from error
    return file.name


def _files_in(folder: Path) -> list[Path]:
    try:
        return [file for file in folder.iterdir() if file.name != OWNER]
    except OSError:  # it is no folder, or was deleted meanwhile
        return []


def _same(file: Path, owner: str) -> Path | None:
    """Return the folder in which the owner has the same file under the same name."""
    name = _clean_name(file.name)
    for folder in _owned(owner):
        if (folder / name).is_file() and filecmp.cmp(file, folder / name, shallow=False):
            return folder
    return None


def _require_share(owner: str, size: int, most: int) -> None:
    used = sum(folder_size(folder) for folder in _owned(owner))
    if used + size > most:
        raise StudioError(
            f"Your uploads use {used / 2**20:,.0f} of {most / 2**20:,.0f} MiB. Those that no run uses are deleted "
            "after a day. Try again then, or delete some under Storage in the Fine-tune tab."
        )


def _owned(owner: str) -> list[Path]:
    return [folder for folder in _folder().glob("*") if owner_of_upload(folder) == owner]


def holds(file: str | Path) -> bool:
    """Return whether a file is an upload."""
    return Path(file).absolute().is_relative_to(_folder())


def transfer_owner(before: str, after: str) -> None:
    """Assign all uploads of owner `before` to owner `after`.

    Raises:
        StudioError: the disk can't be written.
    """
    try:
        for folder in _folder().glob("*"):
            if owner_of_upload(folder) == before:
                atomic_write(folder / OWNER, after)
    except OSError as error:
        raise unwritable(_folder(), error) from error


def clean(store: RunStore) -> None:
    """Delete uploads that are older than a day and used by no run."""
    if not _folder().is_dir():
        return
    used = {Path(run.data).parent for run in store.list()}
    for folder in _folder().iterdir():
        if folder not in used and time.time() - folder.stat().st_mtime > UNUSED_S:
            shutil.rmtree(folder, ignore_errors=True)


def _folder() -> Path:
    return (home() / "uploads").resolve()


def _clean_name(name: str) -> str:
    """Return a safe file name. A long name is cut at the front to keep its extension."""
    return re.sub(r"[^\w.-]", "_", name)[-80:].lstrip(".") or "rows"
