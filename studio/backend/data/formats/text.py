"""Plain text that is trained in full: one message with the role "text"."""

from __future__ import annotations

import re

from studio.backend.data.formats import Cells, Format, Messages, needed_text
from studio.backend.data.row import Problem

STRUCTURED = re.compile(
    r"\s*(array\()?[\[{]\s*(?:[\[{]\s*)?([\"'])(role|content|from|value|messages|conversations)\2\s*:"
)
"""The beginning of a conversation, as JSON or as Python's repr."""


def messages(cells: Cells) -> Messages:
    text = needed_text(cells, "text")
    if STRUCTURED.match(text):
        remedy = "Name its column messages, and write one conversation in each cell as JSON."
        raise Problem("text", f"holds a conversation, not plain text: {text[:60]!r}", remedy)
    return [{"role": "text", "content": text}]


def fits(cells: Cells) -> bool:
    return not (isinstance(cells["text"], str) and STRUCTURED.match(cells["text"]))


FORMAT = Format(
    name="text",
    order=50,
    help="text: one column of plain text",
    fields={"text": ("text", "content", "document")},
    messages=messages,
    fits=fits,
)
