"""Plain text that is trained in full: one message with the role "text"."""

from __future__ import annotations

import re

from studio.backend.data.formats import Cells, Format, Messages, needed_text
from studio.backend.data.python_text import parse_list
from studio.backend.data.row import Problem

STRUCTURED = re.compile(
    r"\s*(array\()?[\[{]\s*(?:[\[{]\s*)?([\"'])(role|content|from|value|messages|conversations)\2\s*:"
)
"""The beginning of a conversation, as JSON or as Python's repr."""
OBJECT = re.compile(r"\s*\{\s*[\"']")


def messages(cells: Cells) -> Messages:
    text = needed_text(cells, "text")
    if STRUCTURED.match(text):
        remedy = "Choose the format messages, and this column for messages."
        raise Problem("text", f"holds a conversation, not plain text: {text[:60]!r}", remedy)
    return [{"role": "text", "content": text}]


def fits(cells: Cells) -> bool:
    text = cells["text"]
    return not (isinstance(text, str) and (STRUCTURED.match(text) or _keys(text)))


def check(cells: Cells) -> None:
    """Raise Problem if a text is a JSON object, as in a row that was written as JSON into a cell."""
    if isinstance(text := cells["text"], str) and (keys := _keys(text)):
        shown = ", ".join(repr(key[:40]) for key in keys[:5])
        remedy = "Write a column for each of them, or choose the format text to train it as it is."
        raise Problem("text", f"holds a JSON object with {shown}, not plain text: {text[:60]!r}", remedy)


def _keys(text: str) -> list[str]:
    """Return the keys of a text that is an object, as JSON or as Python's repr; none of other texts."""
    if not OBJECT.match(text):
        return []
    try:
        found = parse_list(text, "text")
    except Problem:
        return []
    return [*map(str, found)] if isinstance(found, dict) else []


FORMAT = Format(
    name="text",
    order=50,
    help="text: one column of plain text",
    fields={"text": ("text", "content", "document")},
    messages=messages,
    fits=fits,
    check=check,
)
