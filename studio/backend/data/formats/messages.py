"""OpenAI messages: a list of objects with role and content. In a csv file, the cell holds the list as text."""

from __future__ import annotations

from studio.backend.data.formats import SYSTEM, Cells, Format, Messages, optional_text
from studio.backend.data.turns import conversation, has_keys, turns, unused_keys

KEYS = {"role", "content"}


def messages(cells: Cells) -> Messages:
    return conversation(turns(cells, "messages"), "messages", system=optional_text(cells, "system"))


FORMAT = Format(
    name="messages",
    order=10,
    help='messages: a list of {"role", "content"}',
    fields={"messages": ("messages", "conversations", "conversation")},
    optional={"system": SYSTEM},
    messages=messages,
    fits=lambda cells: has_keys(cells, "messages", KEYS),
    unused_keys=lambda cells: unused_keys(cells, "messages", KEYS),
)
