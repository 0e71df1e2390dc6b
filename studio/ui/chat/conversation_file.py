"""Export and import of a conversation as JSON, with the routing of its answers.

    text = export_conversation(conversation, traces.get)
    conversations = import_conversations(file_bytes, traces.open)

The file has the content of `conversation.to_json`, plus a `trace` for each answer: `RoutingTrace.to_bytes` as base64.
For answers shown side by side, `base` is the base model's reply. A file of several conversations, which the browser
writes from its storage, has a list of them without traces.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from jetmoe.routing import RoutingTrace
from studio.errors import StudioError
from studio.ui.chat.conversation import Answer, Conversation, Turn, parse

FORMAT = "jetmoe-studio-conversation-1"
SEVERAL = "jetmoe-studio-conversations-1"
MAX_FILE = 64 * 2**20


def export_conversation(conversation: Conversation, find_trace: Callable[[Answer], RoutingTrace | None]) -> str:
    """Return the text of the file. If `find_trace` returns None, the answer is exported without its trace."""
    document = {"format": FORMAT, "title": conversation.title, "raw": conversation.raw, "system": conversation.system}
    turns = [_exported_turn(turn, find_trace) for turn in conversation.turns]
    return json.dumps(document | {"turns": turns}, ensure_ascii=False, indent=1)


def _exported_turn(turn: Turn, find_trace: Callable[[Answer], RoutingTrace | None]) -> dict[str, Any]:
    exported: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.answer is not None:
        exported["answer"] = _exported_answer(turn.answer, find_trace)
    if turn.base is not None:
        exported["base"] = {"content": turn.base.content, "answer": _exported_answer(turn.base.answer, find_trace)}
    if turn.others:
        # Without routing, which is computed again when a variant is shown.
        exported |= {"number": turn.number, "others": [_exported_turn(each, lambda _: None) for each in turn.others]}
    return exported


def _exported_answer(answer: Answer, find_trace: Callable[[Answer], RoutingTrace | None]) -> dict[str, Any]:
    exported = {name: value for name, value in asdict(answer).items() if name != "trace_id"}
    trace = find_trace(answer)
    if trace is not None:
        exported["trace"] = base64.b64encode(trace.to_bytes()).decode()
    return exported


def import_conversations(data: bytes, open_trace: Callable[[RoutingTrace], str]) -> list[Conversation]:
    """Return the conversations in the file, at least one. After all checks, the traces are opened under new ids.

    Raises:
        StudioError: the file was not exported from this page; no trace is opened.
    """
    document = _document(data)
    if document["format"] == FORMAT:
        return [_imported(document, open_trace)]
    listed = document.get("conversations")
    if not isinstance(listed, list) or not listed:
        raise StudioError("The file holds no conversations. Choose a file exported from this page.")
    return [replace(parse(each), id="") for each in listed]


def _imported(document: dict[str, Any], open_trace: Callable[[RoutingTrace], str]) -> Conversation:
    conversation = replace(parse(document), id="")
    pairs = list(zip(document["turns"], conversation.turns, strict=True))
    traces = [_traces(raw, turn, number) for number, (raw, turn) in enumerate(pairs, start=1)]
    turns = [_with_traces(turn, found, open_trace) for turn, found in zip(conversation.turns, traces, strict=True)]
    return replace(conversation, turns=tuple(turns))


def _document(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_FILE:
        raise StudioError(f"The file has {len(data) / 2**20:.0f} MB, but at most {MAX_FILE // 2**20} MB can be opened.")
    try:
        document = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise StudioError("The file is not valid JSON. Choose a conversation exported from this page.") from error
    if not isinstance(document, dict) or document.get("format") not in (FORMAT, SEVERAL):
        raise StudioError(f"The format of the file is not {FORMAT!r}. Choose a conversation exported from this page.")
    return document


def _traces(raw: dict[str, Any], turn: Turn, number: int) -> tuple[RoutingTrace | None, RoutingTrace | None]:
    """Return the traces of the turn's answer and of the base model's reply."""
    own = None if turn.answer is None else _trace(raw.get("answer"), turn.answer, number)
    base = None if turn.base is None else _trace(raw["base"].get("answer"), turn.base.answer, number)
    return own, base


def _trace(raw: Any, answer: Answer, number: int) -> RoutingTrace | None:
    encoded = raw.get("trace") if isinstance(raw, dict) else None
    if encoded is None:
        return None
    try:
        trace = RoutingTrace.from_bytes(base64.b64decode(encoded, validate=True))
    except (ValueError, TypeError, AttributeError, IndexError, binascii.Error) as error:
        raise StudioError(
            f"The routing trace of message {number} is damaged. Export the conversation again."
        ) from error
    problem = _problem(trace, answer)
    if problem:
        raise StudioError(
            f"The routing trace of message {number} does not match the message: {problem}. Export it again."
        )
    return trace


def _problem(trace: RoutingTrace, answer: Answer) -> str:
    L, N, T, K = trace.experts.shape
    if not (1 <= L <= 512 and 1 <= N <= 4 and 1 <= T <= 200_000 and 1 <= K <= trace.num_experts <= 256):
        return f"no model has {L} layers, {N} routers, {T} tokens and {K} of {trace.num_experts} experts"
    if trace.token_ids.shape != (T,) or trace.token_ids.tolist() != list(answer.token_ids):
        return "its tokens are different"
    if not np.array_equal(trace.is_prompt, np.arange(T) < answer.prompt_tokens):
        return "its prompt has a different length"
    if trace.groups.ndim != 1 or trace.num_groups > trace.num_experts or any(len(kind) > 20 for kind in trace.kinds):
        return "its expert groups are invalid"
    if not (np.isfinite(trace.gates).all() and (trace.gates >= 0).all() and (trace.gates <= 1).all()):
        return "its gates are not between 0 and 1"
    return "" if np.isfinite(trace.entropy).all() else "its entropies are not finite"


def _with_traces(
    turn: Turn, found: tuple[RoutingTrace | None, RoutingTrace | None], open_trace: Callable[[RoutingTrace], str]
) -> Turn:
    def opened(answer: Answer, trace: RoutingTrace | None) -> Answer:
        return replace(answer, trace_id="" if trace is None else open_trace(trace))

    own, base = found
    if turn.answer is not None:
        turn = replace(turn, answer=opened(turn.answer, own))
    if turn.base is not None:
        turn = replace(turn, base=replace(turn.base, answer=opened(turn.base.answer, base)))
    return turn
