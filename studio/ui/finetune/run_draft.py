"""Drafts of training runs: the values in browser storage, and the recipe made from them.

    draft = from_json(stored)            # checks every field, because browser input is untrusted
    recipe = draft.recipe(models)        # raises StudioError with all invalid settings
    stored = draft.to_json()

The data is the name of a sample or the id of an upload, never a path.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from studio.backend.data import hub_dataset, uploads
from studio.backend.data.dataset import SAMPLES
from studio.backend.hosting import demo
from studio.backend.recipe import HUB_PREFIX, Recipe
from studio.backend.recipe_conflicts import LABELLED
from studio.backend.recipe_file import recipes
from studio.errors import StudioError
from studio.ui.finetune.recipe_form import NAMES, form_values, read_form

OWN_FILE = "own"
"""The source for an uploaded file."""
HUB = "hub"
"""The source for a data set of the Hugging Face Hub."""
BUNDLED = "starter/lora_experts"
"""Recipe of a new draft."""
CLASSIFIER = "starter/classify" if torch.cuda.is_available() else "starter/classify_quick"
"""Recipe that trains a classifier: without a GPU, only its head."""
TASKS = {"chat": BUNDLED, "classify": CLASSIFIER}
PURPOSES = {"chat": "chat", "classify": "classify", "text": "chat"}
"""The task of each use of the rows."""
MAX_STORED = 200_000
OF_DATA = (
    "model",
    "task",
    "problem",
    "class_weights",
    "prompt",
    "on_bad_rows",
    "eval_share",
    "max_length",
    "packing",
    "seed",
)
"""Settings that affect the data preview."""


def bundled_recipe(name: str) -> Recipe:
    """Return a bundled recipe, within the limits of a demo."""
    recipe, limits = Recipe.load(name), demo.limits()
    return limits.lowered(recipe) if limits else recipe


@dataclass(frozen=True)
class Draft:
    source: str = "devils-dictionary"
    upload: str = ""
    file: str = ""
    """Original name of the uploaded file."""
    format: str = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=lambda: form_values(bundled_recipe(BUNDLED)))
    """Control values of the form, by name."""
    name: str = ""
    hub: str = ""
    """OWNER/NAME[/CONFIG][@REVISION][:SPLIT] of a data set of the Hub."""
    encoding: str = "auto"
    """Encoding of a text file."""
    bundled: str = BUNDLED
    """Bundled recipe that the settings were taken from; empty if they are from a file."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def recipe(self, models: Collection[str], names: Collection[str] = NAMES, owner: str = "") -> Recipe:
        """Return the recipe for an owner's run; settings that are not in `names` get their defaults.

        Raises:
            StudioError: there is no data, the model is not in `models`, or settings are invalid (all are named).
        """
        settings = {name: value for name, value in read_form(self.settings).items() if name in names}
        recipe = Recipe.from_settings(
            settings
            | {"format": self.format, "columns": self.columns, "data": self._data(owner)}
            # The encoding that was chosen for a file says nothing about a sample or a data set of the Hub.
            | {"encoding": self.encoding if self.source == OWN_FILE else "auto"}
        )
        # On the command line a model may also be a folder; a page must not access arbitrary folders of the server.
        if recipe.model not in models:
            raise StudioError(f"The model {recipe.model[:80]!r} is not in the list. Choose one of {', '.join(models)}.")
        return recipe

    def shared(self, recipe: Recipe) -> Recipe:
        """Return the recipe for another machine, with the name of an uploaded file instead of its path."""
        return replace(recipe, data=self.file or "FILE") if self.source == OWN_FILE else recipe

    def loaded(self, recipe: Recipe, bundled: str = "") -> Draft:
        """Return the draft with a recipe's settings.

        The data changes only if the recipe names a sample, its format and columns only if the recipe sets them.

        Args:
            bundled: name of the recipe, if it is bundled.
        """
        draft = replace(self, settings=form_values(recipe), bundled=bundled)
        if recipe.data in SAMPLES and recipe.data != self.source:
            draft = replace(draft, source=recipe.data, format="auto", columns={})
        if hub_dataset.is_reference(recipe.data):
            hub = recipe.data.removeprefix(HUB_PREFIX)
            draft = replace(draft, source=HUB, hub=hub, format="auto", columns={})
        if recipe.format != "auto" or recipe.columns:
            draft = replace(draft, format=recipe.format, columns=recipe.columns)
        return replace(draft, encoding=recipe.encoding) if recipe.encoding != "auto" else draft

    def with_data_of(self, recipe: Recipe, owner: str) -> tuple[Draft, bool]:
        """Return the draft with a recipe's data, if the page offers it, and whether it does.

        A page offers samples, data sets of the Hub and uploads of the owner. Other files of the server are left out.
        """
        if recipe.data in SAMPLES or hub_dataset.is_reference(recipe.data):
            return self, True  # `loaded` has set it
        file = Path(recipe.data)
        upload, draft = file.parent.name, replace(self, source=OWN_FILE, upload="", file="")
        try:
            is_there = uploads.holds(file) and uploads.find(upload, owner) == file
        except StudioError:
            is_there = False
        return (replace(draft, upload=upload, file=file.name[:80]), True) if is_there else (draft, False)

    @property
    def purpose(self) -> str:
        """What the rows are used for: chat, classify or text."""
        return "text" if self.format == "text" else str(self.settings["task"])

    def used_for(self, purpose: str) -> Draft:
        """Return the draft for another purpose, with the recipe of its task if the task changes.

        Raises:
            StudioError: there is no such purpose.
        """
        if purpose not in PURPOSES:
            raise StudioError("The rows can't be used for that. Reload the page.")
        draft, task = replace(self, format="text" if purpose == "text" else "auto", columns={}), PURPOSES[purpose]
        if task == self.settings["task"]:
            return draft
        settings = form_values(bundled_recipe(TASKS[task])) | {"model": self.settings["model"]}
        return replace(draft, settings=settings, bundled=TASKS[task])

    @property
    def is_edited(self) -> bool:
        """Whether settings other than the model differ from the bundled recipe."""
        if not self.bundled:
            return False
        return self.settings != form_values(bundled_recipe(self.bundled)) | {"model": self.settings["model"]}

    def _data(self, owner: str) -> str:
        if self.source == HUB:
            if not self.hub.strip():
                raise StudioError("There is no training data. Enter the name of a data set, or choose a sample.")
            reference = HUB_PREFIX + self.hub.strip().removeprefix(HUB_PREFIX)
            hub_dataset.parse(reference)
            return reference
        if self.source != OWN_FILE:
            return self.source
        if not self.upload:
            raise StudioError("There is no training data. Upload a file or choose a sample.")
        return str(uploads.find(self.upload, owner))


def from_handed(handed: Any) -> Draft:
    """Return a draft that trains a classifier on the file of `Form.training_data`.

    Raises:
        StudioError: see `from_json`.
    """
    names = ("upload", "file", "columns", "encoding")
    if not isinstance(handed, dict) or not all(name in handed for name in names):
        raise StudioError("There is no file to train on. Choose a file in the Classify tab first.")
    draft = Draft(OWN_FILE, handed["upload"], handed["file"], LABELLED, handed["columns"], encoding=handed["encoding"])
    return from_json(draft.loaded(bundled_recipe(CLASSIFIER), CLASSIFIER).to_json())


def from_json(stored: Any) -> Draft:
    """Return the draft written by `to_json`; settings that an earlier version did not have get their defaults.

    Raises:
        StudioError: it is invalid, or from another version of the studio.
    """
    try:
        draft = Draft(**_parsed(stored))
    except (ValueError, TypeError, RecursionError) as error:
        raise StudioError("The form stored in this browser can't be read.") from error
    texts = [draft.source, draft.upload, draft.file, draft.format, draft.name, draft.hub, draft.encoding, draft.bundled]
    texts += [*draft.columns, *draft.columns.values()]
    if not all(isinstance(text, str) for text in texts) or set(draft.settings) - set(NAMES):
        raise StudioError("The form stored in this browser is from another version of the studio.")
    if draft.source not in (*SAMPLES, OWN_FILE, HUB):
        raise StudioError(f"There is no sample {draft.source[:40]!r}.")
    if draft.bundled and draft.bundled not in recipes():
        raise StudioError(f"There is no recipe {draft.bundled[:40]!r}.")
    return replace(draft, settings=form_values(bundled_recipe(BUNDLED)) | draft.settings)


def _parsed(stored: Any) -> dict[str, Any]:
    if not isinstance(stored, str) or len(stored) > MAX_STORED:
        raise ValueError("not text, or too long")
    parsed = json.loads(stored)
    parts = [parsed, *(parsed.get(key, {}) for key in ("columns", "settings"))] if isinstance(parsed, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise ValueError("not a draft")
    return parsed
