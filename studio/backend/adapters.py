"""Where an adapter is: in the folder of a training run, or in a folder that a person names.

adapter_folder("3f2a")                    # of the run whose id begins so
find("downloads/pirate").run              # None: no run of this store made it
require_model(find("3f2a"), "starter")
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from jetmoe.lora import CONFIG
from studio.backend import catalog
from studio.backend.runs import Run, RunStore
from studio.errors import StudioError


class Found(NamedTuple):
    folder: Path
    """Holds PEFT's files."""
    run: Run | None
    """The run that made it, where this store knows it."""


def adapter_folder(run_or_folder: str | Path) -> Path:
    """Arguments and errors as of `find`."""
    return find(run_or_folder).folder


def find(run_or_folder: str | Path) -> Found:
    """The adapter of a run (its id, the first characters of it, or its folder), or the folder of any PEFT adapter.

    Raises:
        StudioError: there is no such run or folder, several runs begin so, or the run has no adapter yet.
    """
    folder, store, text = Path(run_or_folder), RunStore(), str(run_or_folder)[:200]
    with suppress(OSError):  # longer than a file's name can be
        if (folder / CONFIG).is_file():
            return Found(folder, _run_in(store, folder.resolve()))
        if folder.is_dir() and (run := _run_in(store, folder.resolve())):
            return _of_run(run)
    if re.fullmatch("[0-9a-f-]{1,36}", text):
        return _of_run(store.get(text))
    raise StudioError(
        f"{text!r} is neither the folder of a PEFT adapter (there is no {CONFIG} in it) nor the id of a run. Runs are "
        "listed by `python -m studio runs list`."
    )


def require_model(found: Found, model_id: str) -> None:
    """Raises StudioError: the run that made the adapter trained another model."""
    run = found.run
    if run is not None and run.model != model_id and _folder_of(run.model) != _folder_of(model_id):
        raise StudioError(
            f"Run {run.id[:8]} was trained on the model {run.model}, which its adapter needs, and not on {model_id}. "
            f"Use {run.model} with it."
        )


def _folder_of(model_id: str) -> Path:
    """Of a hub model that is not here, a name that no other has."""
    folder = catalog.path(model_id) or Path("hub", catalog.entry(model_id).source)
    return folder.resolve()


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
