"""ShareGPT's list of conversations with from and value; in a csv file the list is JSON in a cell."""

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
