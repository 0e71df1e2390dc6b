"""The settings of the Classify tab. All values come from a browser, so they are checked here.

form = read_form({"labels": "sport, science", "template": "..."})     # from browser storage
form.task()                                                           # raises StudioError if settings are invalid
texts = split_texts("one\\ntwo", one_a_line=True)
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from studio.backend.classification.label_prompt import (
    DEFAULT_TEMPLATE,
    LONGEST_LABEL,
    LONGEST_TEMPLATE,
    MOST_LABELS,
    TEMPLATES,
    parse_labels,
)
from studio.backend.classification.zero_shot import LabelTask
from studio.errors import StudioError
from studio.ui.common.longest_text import longest_text

MAX_LABELS_TEXT = MOST_LABELS * (LONGEST_LABEL + 2)
MAX_LINES = 200
"""More texts must be uploaded as a file."""
MAX_NAME = 200
SENTIMENT = "positive, negative, neutral"
TOPIC = "sport, science, politics, business, arts"
SPAM = "spam, a normal message"
REQUEST = "a question, a complaint, praise, an order"
LANGUAGE = "English, French, Spanish, German"
NO_COLUMN = ("none", "")
"""The dropdown choice for no column."""
OWN = "custom"
"""Name of a template that is not in `TEMPLATES`."""


class Preset(NamedTuple):
    title: str
    labels: str
    template: str


class Example(NamedTuple):
    text: str
    labels: str
    template: str


PRESETS = (
    Preset("Sentiment", SENTIMENT, "sentiment"),
    Preset("Topic", TOPIC, DEFAULT_TEMPLATE),
    Preset("Spam", SPAM, DEFAULT_TEMPLATE),
    Preset("Request", REQUEST, DEFAULT_TEMPLATE),
    Preset("Language", LANGUAGE, "topic"),
)
"""The default template, except where another one is better on data of that kind (docs/classification.md)."""
EXAMPLES = (
    Example("The room was spotless, and breakfast alone was worth the trip.", SENTIMENT, "sentiment"),
    Example("The match ended in a draw after a late penalty.", TOPIC, DEFAULT_TEMPLATE),
    Example("You have won! Reply within the hour to claim your prize.", SPAM, DEFAULT_TEMPLATE),
    Example("My parcel arrived open, and half of it is missing.", REQUEST, DEFAULT_TEMPLATE),
    Example("Wo ist der nächste Bahnhof?", LANGUAGE, "topic"),
)  # fmt: skip


@dataclass(frozen=True)
class Form:
    labels: str = PRESETS[0].labels
    template: str = TEMPLATES[DEFAULT_TEMPLATE]
    calibrate: bool = True
    one_a_line: bool = False
    by: str = ""
    """Id of an adapter or a trained classifier; empty for the base model."""
    upload: str = ""
    file: str = ""
    """Name of the uploaded file."""
    column: str = ""
    true_column: str = ""
    """Column of the true labels for the evaluation; empty for none."""
    encoding: str = "auto"
    """Encoding of the file, if it is a text file."""

    def kept(self) -> dict[str, Any]:
        """Return the values for browser storage."""
        return asdict(self)

    def task(self) -> LabelTask:
        """Return the task. Raise StudioError if the labels or the template are invalid."""
        return LabelTask(parse_labels(self.labels), self.template, self.calibrate)

    def training_data(self) -> dict[str, Any]:
        """Return the uploaded file and its columns, so that Fine-tune can train a classifier on it.

        Raises:
            StudioError: there is no file, or its text and label columns are not selected.
        """
        if not self.upload:
            raise StudioError("There is no file to train on. Upload one first.")
        if not self.column or not self.true_column or self.column == self.true_column:
            raise StudioError("Training needs texts and labels. Choose the text column and the label column first.")
        columns = {"text": self.column, "label": self.true_column}
        # With the time, every click changes the state, even for the same file.
        return {
            "upload": self.upload, "file": self.file, "columns": columns, "encoding": self.encoding, "at": time.time()
        }  # fmt: skip


NAMES = [field.name for field in fields(Form)]
LONGEST = {
    "labels": MAX_LABELS_TEXT, "template": LONGEST_TEMPLATE, "by": MAX_NAME, "upload": MAX_NAME, "file": MAX_NAME,
    "column": 10_000, "true_column": 10_000, "encoding": MAX_NAME,
}  # fmt: skip


def read_form(values: Any) -> Form:
    """Return the form; missing values and values of the wrong type get their defaults.

    Raises:
        StudioError: a text is too long.
    """
    values = values if isinstance(values, dict) else {}
    default = Form()
    read = {}
    for field in fields(Form):
        value, usual = values.get(field.name), getattr(default, field.name)
        read[field.name] = value if type(value) is type(usual) else usual
    for name, most in LONGEST.items():
        if len(read[name]) > most:
            raise StudioError(f"The value of {name} has {len(read[name]):,} characters. Keep it under {most:,}.")
    return Form(**read)


def split_texts(text: Any, one_a_line: bool) -> list[str]:
    """Return the texts in the box, at least one.

    Raises:
        StudioError: there is no text, it is too long, or there are too many texts.
    """
    if not isinstance(text, str) or not text.strip():
        raise StudioError("There is no text to classify. Enter one or click an example.")
    if len(text) > longest_text():
        raise StudioError(
            f"The text has {len(text):,} characters. Keep it under {longest_text():,}, or upload it as a file."
        )
    texts = [line.strip() for line in text.splitlines() if line.strip()] if one_a_line else [text.strip()]
    if len(texts) > MAX_LINES:
        raise StudioError(
            f"There are {len(texts):,} texts, but at most {MAX_LINES} are allowed here. Upload them as a file."
        )
    return texts


def template_name(template: str) -> str:
    return next((name for name, text in TEMPLATES.items() if text == template), OWN)
