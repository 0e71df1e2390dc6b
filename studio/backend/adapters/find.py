"""Find an adapter: in the folder of a training run, among the uploads, or in any other folder.

    choices("starter")                        # adapters of runs and uploads that fit the model
    find("downloads/pirate").run              # None: no run of this store made it
    require_model(find("3f2a"), "starter")
    import_adapter([Path("pirate.zip")], "pirate", "starter").id

<home>/adapters/<id>/ holds an uploaded adapter: PEFT's two files, and about.json with its name, model and owner. A
search for an owner finds only the runs and uploads of that owner; the empty owner finds all.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from jetmoe.adapters.files import CONFIG, WEIGHTS, is_classifier
from studio.backend.adapters.checksums import require_digest, require_undamaged
from studio.backend.adapters.uploads import (
    RUN_ID,
    UPLOAD_ID,
    Choice,
    Upload,
    find_upload,
    is_complete,
    list_uploads,
    upload_in,
)
from studio.backend.models import catalog
from studio.backend.runs.run import Run
from studio.backend.runs.store import RunStore
from studio.errors import StudioError

LONGEST_PROMPT = 300
"""Characters of a sample prompt that is offered as an example; longer ones would fill the page."""


class Found(NamedTuple):
    folder: Path
    """The folder with PEFT's files."""
    run: Run | None
    """The run that made the adapter, if it is in this store."""
    upload: Upload | None = None

    @property
    def model(self) -> str | None:
        """The base model, if a run or an upload names it."""
        known = self.run or self.upload
        return None if known is None else known.model

    @property
    def name(self) -> str:
        return (self.run or self.upload or self.folder).name


def choices(model_id: str, task: Literal["chat", "classify"] = "chat", owner: str = "") -> list[Choice]:
    """Return an owner's adapters that fit the task and the model.

    Adapters of runs come first, then uploads, which are all for chat; each latest first.
    """
    runs = [run for run in RunStore().list(owner) if is_complete(run.adapter)]
    uploads = [upload for upload in list_uploads() if owner in ("", upload.owner)]
    models = {run.model for run in runs} | {upload.model for upload in uploads}
    fits = {model: is_same_model(model, model_id) for model in models}
    return [
        *(Choice(run.id, _title(run)) for run in runs if fits[run.model] and _task(run.adapter) == task),
        *(Choice(upload.id, upload.name) for upload in uploads if fits[upload.model] and task == "chat"),
    ]


def find(run_or_folder: str | Path) -> Found:
    """Find an adapter by its run (an id, the start of an id, or the run's folder), its upload id or its folder.

    Raises:
        StudioError: there is no such run or folder, several ids match, the run has no adapter yet, or its files are
            damaged.
    """
    folder, store, text = Path(run_or_folder), RunStore(), str(run_or_folder)[:200]
    with suppress(OSError):  # too long for a path
        if (folder / CONFIG).is_file():
            require_undamaged(folder)
            return Found(folder, _run_in(store, folder.resolve()), upload_in(folder.resolve()))
        if folder.is_dir() and (run := _run_in(store, folder.resolve())):
            return _of_run(run)
    if re.fullmatch(UPLOAD_ID, text):
        return find_id(text)
    if re.fullmatch("[0-9a-f-]{1,36}", text):
        return _of_run(store.get(text))
    raise StudioError(
        f"{text!r} is neither the folder of a PEFT adapter (there is no {CONFIG} in it) nor the id of a run. List the "
        "runs with `python -m studio runs list`."
    )


def is_id(text: object) -> bool:
    """Return whether the text has the form of a `Choice` id."""
    return isinstance(text, str) and re.fullmatch(f"{RUN_ID}|{UPLOAD_ID}", text) is not None


def find_id(adapter_id: str, owner: str = "") -> Found:
    """Return the adapter with the id of a `Choice`. It takes no path, so pages may pass untrusted input.

    Raises:
        StudioError: the owner has no adapter with that id, the run has no adapter yet, or its files are damaged.
    """
    if re.fullmatch(RUN_ID, adapter_id):
        return _of_run(RunStore().get(adapter_id, owner))
    upload = find_upload(adapter_id, owner)
    require_digest(upload.folder / WEIGHTS, upload.sha256)
    return Found(upload.folder, None, upload)


def sample_prompts(adapter_id: str, owner: str = "", most: int = 3) -> list[str]:
    """Return the first sample prompts of the run that made an adapter, from its own rows; [] for an upload."""
    run = find_id(adapter_id, owner).run
    events = [] if run is None else run.events.read()
    prompts = dict.fromkeys(event.values["prompt"] for event in events if event.kind == "sample")
    return [prompt for prompt in prompts if len(prompt) <= LONGEST_PROMPT][:most]


def require_model(found: Found, model_id: str) -> None:
    """Raise StudioError if the adapter was trained on, or uploaded for, another model."""
    if found.model is None or is_same_model(found.model, model_id):
        return
    made = f"Run {found.run.id[:8]} was trained on" if found.run else "This adapter was uploaded for"
    raise StudioError(
        f"{made} the model {found.model}, so the adapter does not fit {model_id}. Use {found.model} with it."
    )


def _title(run: Run) -> str:
    loss = run.best_eval_loss
    return run.name if loss is None else f"{run.name} (held-out loss {loss:.3f})"


def is_same_model(model: str, other: str) -> bool:
    """Return whether two catalog ids, or paths, refer to the same model."""
    if model == other:
        return True
    with suppress(StudioError):  # a model that is no longer in the catalog
        return _folder_of(model) == _folder_of(other)
    return False


def _folder_of(model_id: str) -> Path:
    """Return the model's folder, or a unique placeholder for a hub model that is not downloaded."""
    folder = catalog.path(model_id) or Path("hub", catalog.entry(model_id).source)
    return folder.resolve()


def _task(folder: Path) -> str:
    return "classify" if is_classifier(folder) else "chat"


def _of_run(run: Run) -> Found:
    if not (run.adapter / CONFIG).is_file():
        raise StudioError(
            f"Run {run.id[:8]} has no adapter: it is {run.state}, at step {run.step}. The adapter is saved at the end."
        )
    require_undamaged(run.adapter)
    return Found(run.adapter, run)


def _run_in(store: RunStore, folder: Path) -> Run | None:
    """Return the run whose folder is, or contains, this folder."""
    runs = (store.home / "runs").resolve()
    name = folder.relative_to(runs).parts[:1] if folder.is_relative_to(runs) else ()
    return next((run for run in store.list() if (run.id,) == name), None)
