"""Where an adapter is: in the folder of a training run, among the uploaded ones, or in a folder that a person names.

    choices("starter")                        # of runs and uploads: what fits the model
    adapter_folder("3f2a")                    # of the run whose id begins so
    find("downloads/pirate").run              # None: no run of this store made it
    require_model(find("3f2a"), "starter")
    import_adapter([Path("pirate.zip")], "pirate", "starter").id

<home>/adapters/<id>/ holds an uploaded adapter: PEFT's two files, and about.json with its name, model and owner. Where
an owner is named, only their runs and uploads are found; the empty one finds all.
"""

from __future__ import annotations

import json
import re
import shutil
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from jetmoe import JetMoeForCausalLM
from jetmoe.adapters.files import CONFIG, WEIGHTS, check_weights, is_classifier, read_config
from jetmoe.loading.checkpoint import CheckpointError, read_model_config
from jetmoe.lora import AdapterError
from studio.backend.adapters.files import collect, require_finite
from studio.backend.models import catalog
from studio.backend.runs.run import Run, checked_name
from studio.backend.runs.store import RunStore
from studio.backend.system.files import atomic_write, sha256
from studio.backend.system.home import home
from studio.errors import StudioError

ABOUT = "about.json"
RUN_ID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
UPLOAD_ID = "[0-9a-f]{32}"


class Choice(NamedTuple):
    id: str
    """Of a run, or of an uploaded adapter."""
    title: str


@dataclass(frozen=True)
class Upload:
    """An uploaded adapter: what about.json holds, and its id."""

    id: str
    name: str
    model: str
    created: float
    """Seconds since 1970."""
    sha256: str
    """Of the weights."""
    owner: str = ""

    @property
    def folder(self) -> Path:
        return _uploads() / self.id


class Found(NamedTuple):
    folder: Path
    """Holds PEFT's files."""
    run: Run | None
    """The run that made it, where this store knows it."""
    upload: Upload | None = None

    @property
    def model(self) -> str | None:
        """What it was trained on, where a run or an upload says so."""
        known = self.run or self.upload
        return None if known is None else known.model

    @property
    def name(self) -> str:
        return (self.run or self.upload or self.folder).name


def choices(model_id: str, task: Literal["chat", "classify"] = "chat", owner: str = "") -> list[Choice]:
    """An owner's adapters of a task that fit the model: those of runs, the latest first, then the uploaded ones, which
    all chat, the latest first."""
    runs = [run for run in RunStore().list(owner) if _is_there(run.adapter)]
    uploads = [upload for upload in _list_uploads() if owner in ("", upload.owner)]
    models = {run.model for run in runs} | {upload.model for upload in uploads}
    fits = {model: is_same_model(model, model_id) for model in models}
    return [
        *(Choice(run.id, _title(run)) for run in runs if fits[run.model] and _task(run.adapter) == task),
        *(Choice(upload.id, upload.name) for upload in uploads if fits[upload.model] and task == "chat"),
    ]


def adapter_folder(run_or_folder: str | Path) -> Path:
    """Arguments and errors as of `find`."""
    return find(run_or_folder).folder


def find(run_or_folder: str | Path) -> Found:
    """The adapter of a run (its id, the first characters of it, or its folder), an upload's, or the folder of any.

    Raises:
        StudioError: there is no such run or folder, several runs begin so, or the run has no adapter yet.
    """
    folder, store, text = Path(run_or_folder), RunStore(), str(run_or_folder)[:200]
    with suppress(OSError):  # longer than a file's name can be
        if (folder / CONFIG).is_file():
            return Found(folder, _run_in(store, folder.resolve()), _upload_in(folder.resolve()))
        if folder.is_dir() and (run := _run_in(store, folder.resolve())):
            return _of_run(run)
    if re.fullmatch(UPLOAD_ID, text):
        return find_id(text)
    if re.fullmatch("[0-9a-f-]{1,36}", text):
        return _of_run(store.get(text))
    raise StudioError(
        f"{text!r} is neither the folder of a PEFT adapter (there is no {CONFIG} in it) nor the id of a run. Runs are "
        "listed by `python -m studio runs list`."
    )


def is_id(text: object) -> bool:
    """Whether it can be the id of a `Choice`."""
    return isinstance(text, str) and re.fullmatch(f"{RUN_ID}|{UPLOAD_ID}", text) is not None


def find_id(adapter_id: str, owner: str = "") -> Found:
    """The adapter of a `Choice`: unlike `find`, this takes no path, so that a page may pass on what it is told.

    Raises:
        StudioError: the owner has none of that id, or the run has no adapter yet.
    """
    if re.fullmatch(RUN_ID, adapter_id):
        return _of_run(RunStore().get(adapter_id, owner))
    upload = _read_about(adapter_id) if re.fullmatch(UPLOAD_ID, adapter_id) else None
    if upload is None or owner not in ("", upload.owner):
        raise StudioError(f"There is no adapter {adapter_id[:40]!r}: it may have been deleted. Pick another.")
    return Found(upload.folder, None, upload)


def require_model(found: Found, model_id: str) -> None:
    """Raises StudioError: the run that made the adapter trained another model, or it was uploaded for another."""
    if found.model is None or is_same_model(found.model, model_id):
        return
    made = f"Run {found.run.id[:8]} was trained on" if found.run else "This adapter was uploaded for"
    raise StudioError(
        f"{made} the model {found.model}, which its adapter needs, and not on {model_id}. Use {found.model} with it."
    )


def _title(run: Run) -> str:
    loss = run.best_eval_loss
    return run.name if loss is None else f"{run.name} (held-out loss {loss:.3f})"


def is_same_model(model: str, other: str) -> bool:
    """Whether two names of the catalog, or paths, mean one model."""
    if model == other:
        return True
    with suppress(StudioError):  # the catalog knows one of them no more
        return _folder_of(model) == _folder_of(other)
    return False


def _folder_of(model_id: str) -> Path:
    """Of a hub model that is not here, a name that no other has."""
    folder = catalog.path(model_id) or Path("hub", catalog.entry(model_id).source)
    return folder.resolve()


def _task(folder: Path) -> str:
    return "classify" if is_classifier(folder) else "chat"


def _is_there(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def _of_run(run: Run) -> Found:
    if not (run.adapter / CONFIG).is_file():
        raise StudioError(
            f"Run {run.id[:8]} has no adapter: it is {run.state}, at step {run.step}. One is there when a run is done."
        )
    return Found(run.adapter, run)


def _run_in(store: RunStore, folder: Path) -> Run | None:
    """The run in whose folder this one is, or whose folder it is."""
    runs = (store.home / "runs").resolve()
    name = folder.relative_to(runs).parts[:1] if folder.is_relative_to(runs) else ()
    return next((run for run in store.list() if (run.id,) == name), None)


# --- uploaded ones


def import_adapter(files: Sequence[Path], name: str, model_id: str, owner: str = "") -> Choice:
    """Keeps an uploaded adapter, once everything in it is checked; the model need not be loaded.

    Args:
        files: adapter_config.json and adapter_model.safetensors, or one .zip of the two.
        name: how it is called in `choices`; an empty one becomes "adapter" and the beginning of its id.
        model_id: what it was trained on.

    Raises:
        StudioError: these are not the files of a LoRA adapter of that model, that isn't here, the name is none, or the
            disk is full; nothing is left behind then.
    """
    upload_id = uuid.uuid4().hex
    name = checked_name(name, "An adapter's") or f"adapter {upload_id[:8]}"
    blank = _blank(model_id)
    work = _uploads() / f".{upload_id}.part"
    try:
        work.mkdir(parents=True)
        collect(files, work)
        config = read_config(work)
        check_weights(work, config, blank)
        require_finite(work)
        config.base_model_name_or_path = catalog.entry(model_id).id
        config.save_pretrained(str(work))  # in place of a file that may say anything
        upload = Upload(upload_id, name, model_id, time.time(), sha256(work / WEIGHTS), owner)
        (work / ABOUT).write_text(_about(upload))
        work.rename(upload.folder)
    except AdapterError as error:
        raise StudioError(str(error)) from error
    except OSError as error:
        raise _unwritable(error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Choice(upload_id, name)


def transfer_owner(before: str, after: str) -> None:
    """All uploads of one owner become another's. Raises StudioError: the disk can't be written."""
    try:
        for upload in _list_uploads():
            if upload.owner == before:
                atomic_write(upload.folder / ABOUT, _about(replace(upload, owner=after)))
    except OSError as error:
        raise _unwritable(error) from error


def delete_import(upload_id: str, owner: str = "") -> None:
    """Deletes an uploaded adapter.

    Raises:
        StudioError: the owner has none of that id, or it can't be deleted.
    """
    upload = find_id(upload_id, owner).upload
    if upload is None:
        raise StudioError("This is the adapter of a run, not an uploaded one. Delete the run.")
    gone = upload.folder.with_name(f".{upload.id}.part")  # so that it is never there in part
    try:
        upload.folder.rename(gone)
        shutil.rmtree(gone)
    except OSError as error:
        raise StudioError(f"{upload.folder} can't be deleted ({error.strerror}). Delete it by hand.") from error


def _blank(model_id: str) -> JetMoeForCausalLM:
    """A model of the same shapes that takes no memory."""
    folder = catalog.path(model_id) if catalog.ready(model_id) else None
    if folder is None:
        raise StudioError(f"The model {model_id} is not here yet. Load it once, then upload its adapter.")
    try:
        with torch.device("meta"):
            return JetMoeForCausalLM(read_model_config(folder))
    except CheckpointError as error:
        raise StudioError(str(error)) from error


def _unwritable(error: OSError) -> StudioError:
    return StudioError(f"{_uploads()} can't be written ({error.strerror}). Check the disk and try again.")


def _about(upload: Upload) -> str:
    return json.dumps({key: value for key, value in asdict(upload).items() if key != "id"})


def _uploads() -> Path:
    return home() / "adapters"


def _list_uploads() -> list[Upload]:
    """The latest first."""
    found = [_read_about(folder.name) for folder in _uploads().glob("*") if re.fullmatch(UPLOAD_ID, folder.name)]
    return sorted((each for each in found if each is not None), key=lambda each: -each.created)


def _upload_in(folder: Path) -> Upload | None:
    is_one = folder.parent == _uploads().resolve() and re.fullmatch(UPLOAD_ID, folder.name)
    return _read_about(folder.name) if is_one else None


def _read_about(upload_id: str) -> Upload | None:
    """None where no whole upload is."""
    folder = _uploads() / upload_id
    if not (_is_there(folder) and (folder / ABOUT).is_file()):
        return None
    return Upload(upload_id, **json.loads((folder / ABOUT).read_text()))
