"""A prompt and its completion, under any of the common column names; both may also be messages, as in TRL."""

from __future__ import annotations

from studio.backend.data.formats import SYSTEM, Cells, Format, Messages, needed_text, optional_text
from studio.backend.data.python_text import parse_list
from studio.backend.data.row import Problem
from studio.backend.data.turns import conversation, has_keys, turns, unused_keys

# Columns that may also mean something else.
SOURCES = ("document", "article", "dialogue", "text")
SUMMARIES = ("summary", "highlights")
CONTEXT = ("context", "passage")
ROLES = {"prompt": "user", "completion": "assistant"}
KEYS = {"role", "content"}


def messages(cells: Cells) -> Messages:
    lists = {key: _is_list(cells, key) for key in ROLES}
    if any(lists.values()):
        return _conversation(cells, lists)
    prompt = "\n\n".join(filter(None, (optional_text(cells, "context"), needed_text(cells, "prompt"))))
    return answered(cells, prompt, needed_text(cells, "completion"))


def answered(cells: Cells, prompt: str, completion: str) -> Messages:
    """Return the messages of a question and its answer, after the earlier ones of the field `history`."""
    turns = [turn for pair in _history(cells) for turn in zip(("user", "assistant"), pair, strict=True)]
    found = [{"role": role, "content": text} for role, text in [*turns, ("user", prompt), ("assistant", completion)]]
    return conversation(found, "history", system=optional_text(cells, "system"))


def _history(cells: Cells) -> list[list[str]]:
    """Return pairs of question and answer."""
    cell = cells.get("history")
    found = parse_list(cell, "history") if isinstance(cell, str) and cell.strip() else cell or []
    if not isinstance(found, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in found):
        raise Problem("history", "is not a list of pairs", "Write [[question, answer], ...], or delete it.")
    return found


def _is_list(cells: Cells, key: str) -> bool:
    """Return whether a cell is a list, or the text of a list of messages: other lists are texts, such as JSON."""
    cell = cells[key]
    if not isinstance(cell, str):
        return isinstance(cell, list)
    return cell.lstrip()[:2] in ("[{", "[ ", "[\n") and has_keys(cells, key, KEYS)


def _conversation(cells: Cells, lists: dict[str, bool]) -> Messages:
    """Return the messages of a prompt and a completion that are lists of messages, or one of them a text."""
    found = [
        turns(cells, key) if lists[key] else [{"role": role, "content": needed_text(cells, key)}]
        for key, role in ROLES.items()
    ]
    return conversation([*found[0], *found[1]], "completion", system=optional_text(cells, "system"))


def _unused_keys(cells: Cells) -> set[str]:
    return set().union(*(unused_keys(cells, key, KEYS) for key in ROLES if _is_list(cells, key)))


FORMAT = Format(
    name="prompt_completion",
    order=40,
    help="prompt and completion, also question and answer, or input and output",
    fields={
        "prompt": ("prompt", "question", "query", "input", *SOURCES),
        "completion": ("completion", "response", "answer", "output", *SUMMARIES),
    },
    optional={"system": SYSTEM, "history": ("history",), "context": CONTEXT},
    messages=messages,
    unused_keys=_unused_keys,
    guessed=frozenset({*SOURCES, *SUMMARIES, *CONTEXT}),
)
