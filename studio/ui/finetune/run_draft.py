"""A training run as it is being put together: what the browser keeps, and the recipe that it makes.

    draft = from_json(stored)            # checks everything: what comes from a browser may be anything
    recipe = draft.recipe(models)        # Raises StudioError: all that is wrong with the settings
    stored = draft.to_json()

Data is the name of a sample or the number of an upload, never a path.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from studio.backend.data import uploads
from studio.backend.data.dataset import SAMPLES
from studio.backend.recipe import LABELLED, Recipe
from studio.errors import StudioError
from studio.ui.finetune.recipe_form import NAMES, form_values, read_form

OWN_FILE = "own"
"""The source that is not a sample."""
BUNDLED = "starter/lora_experts"
"""Where a new draft begins."""
CLASSIFIER = "starter/classify"
"""The recipe that trains a classifier."""
MAX_STORED = 200_000
OF_DATA = ("model", "task", "problem", "class_weights", "on_bad_rows", "eval_share", "max_length", "packing", "seed")
"""The settings on which it depends what is seen of the data."""


@dataclass(frozen=True)
class Draft:
    source: str = "devils-dictionary"
    upload: str = ""
    file: str = ""
    """The name that an uploaded file came with."""
    format: str = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=lambda: form_values(Recipe.load(BUNDLED)))
    """What the controls of the form show, by name."""
    name: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def recipe(self, models: Collection[str], names: Collection[str] = NAMES, owner: str = "") -> Recipe:
        """The settings of an owner's run; all but those of these names have their defaults.

        Raises:
            StudioError: no data, a model that is not among these, or bad settings, all of them named at once.
        """
        settings = {name: value for name, value in read_form(self.settings).items() if name in names}
        recipe = Recipe.from_settings(
            settings | {"format": self.format, "columns": self.columns, "data": self._data(owner)}
        )
        # A model may also be a folder, for the command line; a page must not choose any folder of the server.
        if recipe.model not in models:
            raise StudioError(f"The model {recipe.model[:80]!r} is not in the list. Choose one of {', '.join(models)}.")
        return recipe

    def shared(self, recipe: Recipe) -> Recipe:
        """The recipe for another machine, where an upload goes by the name of its file."""
        return replace(recipe, data=self.file or "FILE") if self.source == OWN_FILE else recipe

    def loaded(self, recipe: Recipe) -> Draft:
        """With the settings of a recipe; the data stays unless the recipe names a sample, and how it is read unless the
        recipe says that."""
        draft = replace(self, settings=form_values(recipe))
        if recipe.data in SAMPLES and recipe.data != self.source:
            draft = replace(draft, source=recipe.data, format="auto", columns={})
        if recipe.format != "auto" or recipe.columns:
            draft = replace(draft, format=recipe.format, columns=recipe.columns)
        return draft

    def _data(self, owner: str) -> str:
        if self.source != OWN_FILE:
            return self.source
        if not self.upload:
            raise StudioError("Upload a file with your rows first, or choose a sample.")
        return str(uploads.find(self.upload, owner))


def from_handed(handed: Any) -> Draft:
    """Return a draft that trains a classifier on the file of `Form.training_data`.

    Raises:
        StudioError: as `from_json`.
    """
    draft = Draft(OWN_FILE, handed["upload"], handed["file"], LABELLED, handed["columns"])
    return from_json(draft.loaded(Recipe.load(CLASSIFIER)).to_json())


def from_json(stored: Any) -> Draft:
    """The draft that `to_json` wrote.

    Raises:
        StudioError: it is not one of this version of the studio.
    """
    try:
        draft = Draft(**_parsed(stored))
    except (ValueError, TypeError, RecursionError) as error:
        raise StudioError("What this browser kept of a run can't be read.") from error
    texts = [draft.source, draft.upload, draft.file, draft.format, draft.name, *draft.columns, *draft.columns.values()]
    if not all(isinstance(text, str) for text in texts) or set(draft.settings) != set(NAMES):
        raise StudioError("What this browser kept of a run is of another version of the studio.")
    if draft.source not in (*SAMPLES, OWN_FILE):
        raise StudioError(f"There is no sample {draft.source[:40]!r}.")
    return draft


def _parsed(stored: Any) -> dict[str, Any]:
    if not isinstance(stored, str) or len(stored) > MAX_STORED:
        raise ValueError("too long, or no text")
    parsed = json.loads(stored)
    parts = [parsed, *(parsed.get(key, {}) for key in ("columns", "settings"))] if isinstance(parsed, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise ValueError("not a draft")
    return parsed
