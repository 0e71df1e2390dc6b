"""What texts are classified by, as the page's controls send it: all of it is checked here, as it may be anything.

form = read_form({"labels": "sport, science", "template": "..."})     # from the browser's storage
form.task()                                                           # raises StudioError for what can't be used
texts = split_texts("one\\ntwo", one_a_line=True)
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from studio.backend.classification.label_prompt import (
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
"""More texts are a file."""
MAX_NAME = 200
SENTIMENT = "positive, negative, neutral"
TOPIC = "sport, science, politics, business, arts"
SPAM = "spam, a normal message"
REQUEST = "a question, a complaint, praise, an order"
LANGUAGE = "English, French, Spanish, German"
NO_COLUMN = ("none", "")
"""The choice of a column that leaves it out."""
OWN = "my own"
"""The template's name where its text is none of `TEMPLATES`."""


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
    Preset("Topic", TOPIC, "topic"),
    Preset("Spam", SPAM, "message"),
    Preset("Request", REQUEST, "message"),
    Preset("Language", LANGUAGE, "topic"),
)
EXAMPLES = (
    Example("The room was spotless, and breakfast alone was worth the trip.", SENTIMENT, "sentiment"),
    Example("The match ended in a draw after a late penalty.", TOPIC, "topic"),
    Example("You have won! Reply within the hour to claim your prize.", SPAM, "message"),
    Example("My parcel arrived open, and half of it is missing.", REQUEST, "message"),
    Example("Wo ist der nächste Bahnhof?", LANGUAGE, "topic"),
)  # fmt: skip


@dataclass(frozen=True)
class Form:
    labels: str = PRESETS[0].labels
    template: str = TEMPLATES["sentiment"]
    calibrate: bool = False
    one_a_line: bool = False
    by: str = ""
    """The id of an adapter or of a trained classifier; empty is the model alone."""
    upload: str = ""
    file: str = ""
    """The name of the uploaded file."""
    column: str = ""
    true_column: str = ""
    """The column of the true labels, to measure by; empty is none."""

    def kept(self) -> dict[str, Any]:
        """For the browser's storage."""
        return asdict(self)

    def task(self) -> LabelTask:
        """Raises StudioError: labels or template can't be used."""
        return LabelTask(parse_labels(self.labels), self.template, self.calibrate)

    def training_data(self) -> dict[str, Any]:
        """Return the uploaded file and its columns, for Fine-tune to train a classifier on.

        Raises:
            StudioError: there is no file, or its text and label columns are not chosen.
        """
        if not self.upload:
            raise StudioError("There is no file to train on. Upload one first.")
        if not self.column or not self.true_column or self.column == self.true_column:
            raise StudioError("Choose the column of the texts and that of the true labels first: training uses both.")
        columns = {"text": self.column, "label": self.true_column}
        # The time makes every click a change of the state, even with the same file.
        return {"upload": self.upload, "file": self.file, "columns": columns, "at": time.time()}


NAMES = [field.name for field in fields(Form)]
LONGEST = {
    "labels": MAX_LABELS_TEXT, "template": LONGEST_TEMPLATE, "by": MAX_NAME, "upload": MAX_NAME, "file": MAX_NAME,
    "column": 10_000, "true_column": 10_000,
}  # fmt: skip


def read_form(values: Any) -> Form:
    """The form; what is missing or of another kind is as in a new one.

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
            raise StudioError(f"The {name} have {len(read[name]):,} characters in all. Keep them under {most:,}.")
    return Form(**read)


def split_texts(text: Any, one_a_line: bool) -> list[str]:
    """The texts in the box, at least one.

    Raises:
        StudioError: there is none, it is too long, or there are too many.
    """
    if not isinstance(text, str) or not text.strip():
        raise StudioError("There is no text to classify. Write one, or click an example.")
    if len(text) > longest_text():
        raise StudioError(
            f"The text has {len(text):,} characters. Keep it under {longest_text():,}, or upload it as a file."
        )
    texts = [line.strip() for line in text.splitlines() if line.strip()] if one_a_line else [text.strip()]
    if len(texts) > MAX_LINES:
        raise StudioError(
            f"These are {len(texts):,} texts, and at most {MAX_LINES} are read here. Upload them as a file."
        )
    return texts


def template_name(template: str) -> str:
    return next((name for name, text in TEMPLATES.items() if text == template), OWN)
