"""Plain text that is trained in full: one message with the role "text"."""

from __future__ import annotations

from studio.backend.data.formats import Cells, Format, Messages, needed_text


def messages(cells: Cells) -> Messages:
    return [{"role": "text", "content": needed_text(cells, "text")}]


FORMAT = Format(
    name="text",
    order=50,
    help="text: one column of plain text",
    fields={"text": ("text", "content", "document")},
    messages=messages,
)
