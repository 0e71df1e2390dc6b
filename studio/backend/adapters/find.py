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

import re
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from jetmoe.adapters.files import CONFIG, is_classifier
from studio.backend.adapters.uploads import (
    RUN_ID,
    UPLOAD_ID,
    Choice,
    Upload,
    is_complete,
    list_uploads,
    read_upload,
    upload_in,
)
from studio.backend.models import catalog
from studio.backend.runs.run import Run
from studio.backend.runs.store import RunStore
from studio.errors import StudioError


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
    runs = [run for run in RunStore().list(owner) if is_complete(run.adapter)]
    uploads = [upload for upload in list_uploads() if owner in ("", upload.owner)]
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
            return Found(folder, _run_in(store, folder.resolve()), upload_in(folder.resolve()))
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
    upload = read_upload(adapter_id) if re.fullmatch(UPLOAD_ID, adapter_id) else None
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
