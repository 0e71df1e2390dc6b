"""Uploaded adapters: checked before they are stored, listed by owner, deleted on request.

choice = import_adapter(files, "pirate", "starter", owner)
delete_upload(choice.id, owner)
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import TypeAdapter, ValidationError
from transformers import AutoModelForCausalLM, PreTrainedModel

from jetmoe.adapters.files import CONFIG, WEIGHTS, check_weights, read_config
from jetmoe.loading.checkpoint import CheckpointError, read_model_config
from jetmoe.lora import AdapterError
from studio.backend.adapters.upload_checks import collect, require_finite
from studio.backend.models import catalog
from studio.backend.runs.room import ABOUT, require_room
from studio.backend.runs.run import checked_name
from studio.backend.runs.store import RunStore
from studio.backend.system.files import atomic_write, make_private, publish, read_json, sha256, unwritable
from studio.backend.system.home import home
from studio.errors import StudioError

logger = logging.getLogger(__name__)
RUN_ID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
UPLOAD_ID = "[0-9a-f]{32}"
OWN_UPLOADS = 20
"""Uploaded adapters of an owner, if there are several."""


class Choice(NamedTuple):
    id: str
    """Id of a run or of an uploaded adapter."""
    title: str


@dataclass(frozen=True)
class Upload:
    """An uploaded adapter: its id and the content of about.json."""

    id: str
    name: str
    model: str
    created: float
    """Seconds since 1970."""
    sha256: str
    """Checksum of the weights."""
    owner: str = ""

    @property
    def folder(self) -> Path:
        return _uploads() / self.id


def is_complete(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def import_adapter(files: Sequence[Path], name: str, model_id: str, owner: str = "") -> Choice:
    """Check and store an uploaded adapter; the model need not be loaded.

    Args:
        files: adapter_config.json and adapter_model.safetensors, or one .zip of them. Other files are ignored.
        name: shown in `choices`; an empty name becomes "adapter" and the start of the id.
        model_id: the base model.

    Raises:
        StudioError: the files are not a LoRA adapter of that model, the model isn't downloaded, the name is invalid,
            the owner has too many, or the disk is full; nothing is stored then.

    Returns:
        The stored adapter, or the owner's earlier upload of it.
    """
    upload_id = uuid.uuid4().hex
    name = checked_name(name, "An adapter's") or f"adapter {upload_id[:8]}"
    blank = _blank(model_id)
    work = _uploads() / f".{upload_id}.part"
    try:
        make_private(_uploads())
        work.mkdir()
        collect(files, work)
        config = read_config(work)
        check_weights(work, config, blank)
        require_finite(work)
        config.base_model_name_or_path = catalog.entry(model_id).id
        config.save_pretrained(str(work))  # replaces the uploaded file, which may contain anything
        upload = Upload(upload_id, name, model_id, time.time(), sha256(work / WEIGHTS), owner)
        if same := _same(upload, work):
            return same
        (work / ABOUT).write_text(_about(upload))
        require_room(RunStore(), owner)  # which counts `work`, too
        publish(work, upload.folder)
    except AdapterError as error:
        raise StudioError(str(error)) from error
    except OSError as error:
        raise unwritable(_uploads(), error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Choice(upload_id, name)


def _same(upload: Upload, work: Path) -> Choice | None:
    """Return the owner's upload of the same adapter, on a server with several owners.

    Raises:
        StudioError: the owner has too many others.
    """
    own = [each for each in list_uploads() if upload.owner and each.owner == upload.owner]
    for each in own:
        is_same = (each.sha256, each.model) == (upload.sha256, upload.model)
        if is_same and (each.folder / CONFIG).read_bytes() == (work / CONFIG).read_bytes():
            return Choice(each.id, each.name)
    if len(own) >= OWN_UPLOADS:
        raise StudioError(f"You have {len(own)} uploaded adapters. Delete one that is no longer needed.")
    return None


def transfer_owner(before: str, after: str) -> None:
    """Transfer all uploads of one owner to another.

    Raises:
        StudioError: the disk can't be written.
    """
    try:
        for upload in list_uploads():
            if upload.owner == before:
                atomic_write(upload.folder / ABOUT, _about(replace(upload, owner=after)))
    except OSError as error:
        raise unwritable(_uploads(), error) from error


def delete_upload(upload_id: str, owner: str = "") -> Upload:
    """Delete an uploaded adapter, and return what it was.

    Raises:
        StudioError: the owner has no upload with that id, or it can't be deleted.
    """
    if re.fullmatch(RUN_ID, upload_id):
        raise StudioError("This is the adapter of a run, not an uploaded one. Delete the run.")
    upload = find_upload(upload_id, owner)
    gone = upload.folder.with_name(f".{upload.id}.part")  # a partly deleted upload is never listed
    try:
        upload.folder.rename(gone)
        shutil.rmtree(gone)
    except OSError as error:
        raise StudioError(f"{upload.folder} can't be deleted ({error.strerror}). Delete it by hand.") from error
    return upload


def _blank(model_id: str) -> PreTrainedModel:
    """Return a model with the same shapes on the meta device, which takes no memory."""
    folder = catalog.path(model_id) if catalog.ready(model_id) else None
    if folder is None:
        raise StudioError(f"The model {model_id} is not downloaded yet. Load it once, then upload its adapter.")
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(read_model_config(folder))
    except CheckpointError as error:
        raise StudioError(str(error)) from error


def _about(upload: Upload) -> str:
    return json.dumps({key: value for key, value in asdict(upload).items() if key != "id"})


def _uploads() -> Path:
    return home() / "adapters"


def list_uploads() -> list[Upload]:
    """Return all uploads, latest first."""
    found = [read_upload(folder.name) for folder in _uploads().glob("*") if re.fullmatch(UPLOAD_ID, folder.name)]
    return sorted((each for each in found if each is not None), key=lambda each: -each.created)


def upload_in(folder: Path) -> Upload | None:
    is_one = folder.parent == _uploads().resolve() and re.fullmatch(UPLOAD_ID, folder.name)
    return read_upload(folder.name) if is_one else None


def find_upload(upload_id: str, owner: str) -> Upload:
    """Raise StudioError unless the owner has an upload with this id."""
    upload = read_upload(upload_id) if re.fullmatch(UPLOAD_ID, upload_id) else None
    if upload is None or owner not in ("", upload.owner):
        raise StudioError(f"There is no adapter {upload_id[:40]!r}: it may have been deleted. Pick another.")
    return upload


def read_upload(upload_id: str) -> Upload | None:
    """Return the upload with this id, or None if it is missing, incomplete or damaged."""
    folder = _uploads() / upload_id
    if not (is_complete(folder) and (folder / ABOUT).is_file()):
        return None
    about = read_json(folder / ABOUT) or {}
    try:
        return TypeAdapter(Upload).validate_json(json.dumps({**about, "id": upload_id}), strict=True)
    except ValidationError:
        _warn(folder)
        return None


@cache
def _warn(folder: Path) -> None:
    """Log a damaged upload once, because the list is read often."""
    logger.warning("the adapter in %s is left out, because its %s is damaged", folder, ABOUT)
