"""OpenAI messages: a list of objects with role and content. In a csv file, the cell holds the list as JSON."""

from __future__ import annotations

from studio.backend.data.formats import Cells, Format, Messages, conversation, has_keys, turns

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def messages(cells: Cells) -> Messages:
    return conversation(turns(cells, "messages"), "messages", "role", "content", ROLES)


FORMAT = Format(
    name="messages",
    order=10,
    help='messages: a list of {"role", "content"}',
    fields={"messages": ("messages", "conversations", "conversation")},
    messages=messages,
    fits=lambda cells: has_keys(cells, "messages", {"role", "content"}),
)
