"""ShareGPT conversations: a list of objects with from and value. In a csv file, the cell holds the list as text."""

from __future__ import annotations

from studio.backend.data.formats import SYSTEM, Cells, Format, Messages, optional_text
from studio.backend.data.turns import conversation, has_keys, turns, unused_keys

KEYS = {"from", "value"}


def messages(cells: Cells) -> Messages:
    found = turns(cells, "conversations")
    return conversation(found, "conversations", "from", "value", optional_text(cells, "system"))


FORMAT = Format(
    name="sharegpt",
    order=20,
    help='conversations: a list of {"from", "value"}',
    fields={"conversations": ("conversations", "conversation", "messages")},
    optional={"system": SYSTEM},
    messages=messages,
    fits=lambda cells: has_keys(cells, "conversations", KEYS),
    unused_keys=lambda cells: unused_keys(cells, "conversations", KEYS),
)
