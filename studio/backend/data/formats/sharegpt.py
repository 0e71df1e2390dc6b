"""ShareGPT conversations: a list of objects with from and value. In a csv file, the cell holds the list as JSON."""

from __future__ import annotations

from studio.backend.data.formats import Cells, Format, Messages, conversation, has_keys, optional_text, turns

ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


def messages(cells: Cells) -> Messages:
    system = optional_text(cells, "system")
    first = [{"from": "system", "value": system}] if system else []
    return conversation(first + turns(cells, "conversations"), "conversations", "from", "value", ROLES)


FORMAT = Format(
    name="sharegpt",
    order=20,
    help='conversations: a list of {"from", "value"}',
    fields={"conversations": ("conversations", "conversation", "messages")},
    optional={"system": ("system",)},
    messages=messages,
    fits=lambda cells: has_keys(cells, "conversations", {"from", "value"}),
)
