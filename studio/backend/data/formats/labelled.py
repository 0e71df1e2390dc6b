"""Texts with labels, for a classifier: one message with the role "text", and the labels as strings."""

from __future__ import annotations

import re
from typing import Any

from studio.backend.data.formats import Cells, Format, Messages, needed_text
from studio.backend.data.python_text import parse_list
from studio.backend.data.row import Problem
from studio.backend.recipe_conflicts import LABELLED

LONGEST = 200
"""Maximum characters of a label."""
NULL = "Fill in the label, or delete the row."


def messages(cells: Cells) -> Messages:
    return [{"role": "text", "content": needed_text(cells, "text")}]


def labels(cells: Cells) -> tuple[str, ...]:
    """Return the label, or each label of a list. An empty list means that no label applies."""
    cell = _listed(cells.get("label"))
    names = tuple(map(_name, cell)) if isinstance(cell, list) else (_name(cell),)
    return tuple(dict.fromkeys(names))


def _listed(cell: Any) -> Any:
    """Return the list in a text such as `['a', 'b']`, or as NumPy prints it, `[0 3]`; any other cell as it is."""
    text = cell.strip() if isinstance(cell, str) else ""
    if not (text.startswith("[") and text.endswith("]")):
        return cell
    try:
        found = parse_list(text, "label")
    except Problem:
        return cell
    return found if isinstance(found, list) else cell


def _name(cell: Any) -> str:
    if cell is None or cell != cell or (isinstance(cell, str) and not cell.strip()):  # NaN
        raise Problem("label", "is empty", NULL)
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)  # pandas stores integers as floats if a column has empty cells
    if not isinstance(cell, str | int | float):
        raise Problem("label", f"holds {type(cell).__name__} {str(cell)[:40]!r} instead of a label", "Write a text.")
    name = spelled(" ".join(str(cell).split()))
    if len(name) > LONGEST:
        raise Problem("label", f"has {len(name):,} characters", "A label is a short name. Check the label column.")
    return name


def spelled(name: str) -> str:
    """Return the spelling of a label in all types of files.

    csv has `True` of pandas, `TRUE` of Excel and `1.0` where json has true and 1.
    """
    if name in ("True", "False", "TRUE", "FALSE"):
        return name.lower()
    return re.sub(r"^(-?\d+)\.0+$", r"\1", name)


FORMAT = Format(
    name=LABELLED,
    order=60,
    help="text and label; the label may be a number or a list",
    fields={
        "text": ("text", "sentence", "content", "document", "review", "comment", "message", "utterance", "question"),
        "label": ("label", "labels", "class", "category", "sentiment", "intent", "topic", "target", "score"),
    },
    messages=messages,
    labels=labels,
    task="classify",
)
