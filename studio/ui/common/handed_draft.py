"""A training run that another tab hands to Fine-tune, to be looked at and started there.

handed = handed_draft()                                            # in both tabs the same gr.State
button.click(lambda: for_classifier(form), None, handed)           # in the one
handed.change(open_draft, handed, ...)                             # in the other: its draft is in read(handed)
"""

from __future__ import annotations

import time
from typing import Any
from weakref import WeakKeyDictionary

import gradio as gr

from studio.backend.recipe import LABELLED, Recipe
from studio.errors import StudioError
from studio.ui.classify.form import Form
from studio.ui.common import browser
from studio.ui.finetune.run_draft import OWN_FILE, Draft, from_json

CLASSIFIER = "starter/classify"
"""The recipe that trains one."""
_of_pages: WeakKeyDictionary[gr.Blocks, gr.State] = WeakKeyDictionary()


def handed_draft() -> gr.State:
    """The one of the page that is being built."""
    page = browser.page()
    if page not in _of_pages:
        _of_pages[page] = gr.State(None)
    return _of_pages[page]


def for_classifier(form: Form) -> dict[str, Any]:
    """A run that learns the labels of the file that is uploaded for classifying.

    Raises:
        StudioError: there is no file, or it isn't chosen which of its columns hold texts and labels.
    """
    if not form.upload:
        raise StudioError("There is no file to train on. Upload one first.")
    if not form.column or not form.true_column or form.column == form.true_column:
        raise StudioError("Choose the column of the texts and that of the true labels first: both are learned from.")
    columns = {"text": form.column, "label": form.true_column}
    draft = Draft(OWN_FILE, form.upload, form.file, LABELLED, columns).loaded(Recipe.load(CLASSIFIER))
    # The time makes it another one each time: only a change is told.
    return {"draft": draft.to_json(), "at": time.time()}


def read(handed: Any) -> Draft:
    """Raises StudioError: as `from_json`."""
    return from_json(handed["draft"])
