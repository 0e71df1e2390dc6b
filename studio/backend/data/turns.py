"""Read conversations: the messages of a cell, content parts, system messages, weights and tool calls.

found = turns(cells, "messages")                     # objects, from a list, JSON or the text of a Python list
conversation(found, "messages", system="Be brief.")  # [{"role": "system", ...}, {"role": "user", ...}, ...]
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from studio.backend.data.formats import Cells, Messages, needed_text, optional_text
from studio.backend.data.python_text import parse_list
from studio.backend.data.row import Problem

ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
}  # fmt: skip
NEXT_ROLES = {None: ("system", "user"), "system": ("user",), "user": ("assistant",), "assistant": ("user",)}
TOOL_ROLES = ("tool", "function", "ipython", "observation", "function_call", "function_response")
TOOL_KEYS = ("tool_calls", "function_call")
WEIGHTS = ("weight", "train", "loss", "training")
"""Keys of a message that say whether it is trained."""
TRAINS = (1, "1", "true", "True")
TEXT_PARTS = ("text", "input_text", "output_text")
REMOVE = "Delete the row: only text is trained."


def turns(cells: Cells, key: str) -> list[Cells]:
    """Return the message objects of a cell; a text is parsed.

    Raises:
        Problem: the cell is not a list of objects.
    """
    cell = cells.get(key)
    found = _parsed(cell, key) if isinstance(cell, str) else cell
    if not isinstance(found, list) or not all(isinstance(turn, dict) for turn in found):
        raise Problem(key, "is not a list of messages", "Write a list of objects, one for each message.")
    return found


@lru_cache(maxsize=2)
def _parsed(text: str, key: str) -> Any:
    """Parse the text of a cell. It is cached, because a cell is read for its format, its keys and its messages."""
    return parse_list(text, key)


def has_keys(cells: Cells, key: str, keys: set[str]) -> bool:
    """Return whether a cell holds messages with these keys."""
    try:
        return any(keys <= set(turn) for turn in turns(cells, key))
    except Problem:
        return False


def unused_keys(cells: Cells, key: str, keys: set[str]) -> set[str]:
    """Return the keys with a value in the messages of a cell, without `keys` and those that are read.

    A weight is only read in answers: one that trains another message is unused.
    """
    try:
        found = turns(cells, key)
    except Problem:
        return set()
    read = {*keys, *WEIGHTS, *TOOL_KEYS}
    unused = {
        name for turn in found for name, value in turn.items() if name not in read and value not in (None, "", [])
    }
    others = [turn for turn in found if ROLES.get(str(turn.get("role", turn.get("from"))).lower()) != "assistant"]
    return unused | {f"{name} of a question" for turn in others for name in WEIGHTS if turn.get(name) in TRAINS}


def conversation(
    found: list[Cells], key: str, role_key: str = "role", content_key: str = "content", system: str = ""
) -> Messages:
    """Convert message objects to messages; empty system messages are left out.

    Args:
        system: the system message from another column, which the conversation may repeat.

    Raises:
        Problem: an unknown role, roles out of order, an empty content, a tool call, two system messages, no answer at
            the end, or none that is trained.
    """
    messages: Messages = [{"role": "system", "content": system}] if system else []
    for number, turn in enumerate(found, start=1):
        role = _role(turn, number, key, role_key)
        if role == "system":
            _add_system(messages, _text(turn, number, key, content_key, needed=False), number, key)
            continue
        _check_order(role, messages, number, key)
        messages.append({"role": role, "content": _text(turn, number, key, content_key)})
        if not _is_trained(turn, number, key) and role == "assistant":
            messages[-1]["train"] = False
    if not messages or messages[-1]["role"] != "assistant":
        raise Problem(key, "does not end with an answer", "Add an assistant message, or delete the last question.")
    if not any(message.get("train", message["role"] == "assistant") for message in messages):
        raise Problem(key, "has no answer to train: all have the weight 0", "Set the weight of one to 1.")
    return messages


def _add_system(messages: Messages, text: str, number: int, key: str) -> None:
    if not text or (messages and messages[0]["role"] == "system" and messages[0]["content"].strip() == text.strip()):
        return
    if len(messages) == 1 and messages[0]["role"] == "system":
        raise Problem(key, f"has a second, different system message as message {number}", "Delete one of the two.")
    _check_order("system", messages, number, key)
    messages.append({"role": "system", "content": text})


def _check_order(role: str, messages: Messages, number: int, key: str) -> None:
    previous = messages[-1]["role"] if messages else None
    if role not in NEXT_ROLES[previous]:
        reason = f"has roles out of order: message {number} has the role {role} after {previous or 'nothing'}"
        raise Problem(key, reason, "Start with an optional system message, then alternate user and assistant.")


def _role(turn: Cells, number: int, key: str, role_key: str) -> str:
    role = turn.get(role_key)
    name = role.strip().lower() if isinstance(role, str) else ""
    if name in TOOL_ROLES or any(turn.get(each) for each in TOOL_KEYS):
        raise Problem(key, f"has a tool call in message {number}", REMOVE)
    if name not in ROLES:
        raise Problem(key, f"has the role {str(role)[:40]!r} in message {number}", f"Use one of {', '.join(ROLES)}.")
    return ROLES[name]


def _text(turn: Cells, number: int, key: str, content_key: str, needed: bool = True) -> str:
    """Return the text of a message, with its parts joined by line breaks."""
    content = turn.get(content_key)
    if isinstance(content, list):
        content = "\n".join(_part(part, number, key) for part in content)
    try:
        return (needed_text if needed else optional_text)({content_key: content}, content_key)
    except Problem as problem:
        raise Problem(key, f"has a message {number} whose {content_key} {problem.reason}", problem.remedy) from None


def _part(part: Any, number: int, key: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get("text") if isinstance(part, dict) else None
    if kind in TEXT_PARTS and isinstance(text, str):
        return text
    what = f"a part of type {str(kind)[:40]!r}" if kind and kind not in TEXT_PARTS else "a part without a text"
    raise Problem(key, f"has {what} in message {number}", REMOVE)


def _is_trained(turn: Cells, number: int, key: str) -> bool:
    """Return whether the keys of a message leave it in the loss."""
    for name in WEIGHTS:
        value = turn.get(name)
        value = {"true": 1, "false": 0, "0": 0, "1": 1}.get(value.lower(), value) if isinstance(value, str) else value
        if value not in (None, 0, 1):
            reason = f"has the {name} {str(value)[:40]!r} in message {number}"
            raise Problem(key, reason, "Only 0 and 1, or false and true, are supported.")
        if value == 0:
            return False
    return True
