"""The panel that shows the routing of an answer, and the messages that update it.

    panel = routing_panel()                                          # a gr.HTML component
    yield message(trace_id, trace, seen, 0, 0)                       # a new value: the rows added since `seen`

The template is constant, and text arrives as base64-encoded JSON that becomes text nodes, because gr.HTML compiles the
output of its templates and would execute `${...}` in text. `rows` serves rows that the page has missed and, if the base
model's routing is known, the strongest units that differ from it.
"""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gradio as gr
import numpy as np

from jetmoe.routing import RoutingTrace
from studio.analysis.flips import flip_shares, flips
from studio.analysis.load import Unit, strongest
from studio.backend.chat.alternatives import Alternative
from studio.registry import discover
from studio.ui.common.trace_store import traces
from studio.ui.server.identity import owner_of
from studio.ui.server.scripts import mounting

HERE = Path(__file__).parent
PUSHED = 64
"""Maximum tokens per message; the page fetches the others, such as a long prompt."""
FETCHED = 256
EVENTS = ("pick", "compare", "ask", "branch")
UNITS: tuple[Unit, Unit] = ("group", "expert")


@dataclass(frozen=True)
class View:
    """A view of the routing. `views/<name>.js` exports its class; `views/<name>.css` is optional."""

    name: str
    order: int

    def style(self) -> str:
        path = HERE / "views" / f"{self.name}.css"
        return path.read_text(encoding="utf-8") if path.exists() else ""


def routing_panel(elem_id: str = "routing", of: Literal["answer", "prompt"] = "answer") -> gr.HTML:
    """Return the component, whose value is a `message`.

    Its event "pick" selects another answer of the conversation, "compare" a comparison with the base model's routing,
    "ask" the alternatives to a token, and "branch" an alternative to write another answer with.

    Args:
        of: "answer" shows answers with their prompts, "prompt" only prompts.
    """
    template = (HERE / "panel" / "panel.html").read_text(encoding="utf-8")
    return gr.HTML(
        value="",
        html_template=template.replace('data-of="answer"', f'data-of="{of}"'),
        js_on_load=mounting("routing/panel/panel.js", events=EVENTS, views=[view.name for view in _views()]),
        apply_default_css=False,
        server_functions=[rows, alternatives],
        elem_id=elem_id,
    )


def style() -> str:
    return "\n".join([(HERE / "panel" / "panel.css").read_text(encoding="utf-8"), *(view.style() for view in _views())])


def _views() -> list[View]:
    return discover("studio.ui.routing.views", "VIEW")


def nothing(hint: str = "") -> str:
    """Return the message that empties the panel."""
    return json.dumps({"id": "", "hint": hint})


def message(
    trace_id: str,
    trace: RoutingTrace,
    start: int,
    answer: int,
    last: int,
    picked: bool = False,
    note: str = "",
    adapted: bool = False,
) -> str:
    """Return the message with a trace's head, its size and its last rows from `start` on.

    Args:
        answer, last: index of the answer, and of the last answer of the conversation.
        picked: the user selected this answer, so it is shown even while another one is generated.
        adapted: an adapter wrote the answer, so the base model may route its tokens differently.
    """
    start = max(start, len(trace) - PUSHED)
    told = {"id": trace_id, "head": _head(trace), "total": len(trace), "answer": answer, "answers": last + 1}
    told |= {"picked": picked, "note": note, "from": start, "rows": _rows(trace[start:])}
    base = traces.base(trace_id) if adapted else None
    if adapted:
        told["flips"] = {} if base is None else _shares(base, trace)
    return json.dumps(told)


def rows(asked: Any, request: gr.Request) -> dict[str, Any]:
    """Return up to `FETCHED` rows for the page's `[trace_id, start]`, or {} if there are none.

    `[trace_id, start, "base"]` asks for the differences to the base model's routing instead.
    """
    if not (isinstance(asked, list) and len(asked) in (2, 3) and isinstance(asked[0], str)):
        return {}
    trace_id, start, *part = asked
    trace = traces.get(trace_id, owner_of(request))
    if trace is None or type(start) is not int or not 0 <= start < len(trace) or part not in ([], ["base"]):
        return {}
    tokens = slice(start, start + FETCHED)
    if not part:
        return {"from": start, "rows": _rows(trace[tokens])}
    base = traces.base(trace_id)
    return {} if base is None else {"from": start, "rows": _base_rows(base[tokens], trace[tokens])}


def kept_message(trace_id: str, token: int) -> str:
    """Return the message that the alternatives to a token can be fetched."""
    return json.dumps({"id": trace_id, "kept": token})


def alternatives(asked: Any, request: gr.Request) -> dict[str, Any]:
    """Return the alternatives to a token for the page's `[trace_id, token]`; {} if none are stored."""
    if not (isinstance(asked, list) and len(asked) == 2 and isinstance(asked[0], str) and type(asked[1]) is int):
        return {}
    found = traces.alternatives(asked[0], asked[1], owner_of(request))
    return {"tokens": [_listed(each) for each in found]} if found else {}


def can_branch(alternative: Alternative) -> bool:
    """Return whether an answer can continue after the token: it is text, and ends no character half-way."""
    return not alternative.is_special and alternative.text != "" and "\ufffd" not in alternative.text


def _listed(each: Alternative) -> dict[str, Any]:
    listed = {"id": each.token_id, "text": each.text, "p": math.exp(each.logprob), "chosen": each.is_chosen}
    return listed | {"branches": can_branch(each)}


def _head(trace: RoutingTrace) -> dict[str, Any]:
    L, N, _, K = trace.experts.shape
    head = {"L": L, "N": N, "K": K, "E": trace.num_experts, "kinds": trace.kinds, "groups": trace.groups.tolist()}
    head |= {"tied": trace.is_tied, "gatesSumToOne": trace.gates_sum_to_one}
    return head | {"prompt": int(trace.is_prompt.sum())}


def _rows(trace: RoutingTrace) -> dict[str, str]:
    even = np.log(max(trace.num_experts, 2))
    gates = (trace.gates.astype(np.float32).clip(0, 1) * 65535).round().astype("<u2")  # [L, N, T, K]
    entropy = (trace.entropy.astype(np.float32).clip(0, even) / even * 65535).round().astype("<u2")  # [L, N, T]
    return {
        "e": _base64(trace.experts.transpose(2, 0, 1, 3)),  # [T, L, N, K]
        "g": _base64(gates.transpose(2, 0, 1, 3)),  # [T, L, N, K]
        "h": _base64(entropy.transpose(2, 0, 1)),  # [T, L, N]
        "t": base64.b64encode(json.dumps(trace.texts).encode()).decode(),
    }


def _shares(base: RoutingTrace, trace: RoutingTrace) -> dict[str, list[float]]:
    """Return the share of flipped strongest units by unit: over all routers, then for each kind of router."""
    shares = {unit: flip_shares(base, trace, unit) for unit in UNITS}
    return {unit: [share.all, *share.by_kind.values()] for unit, share in shares.items()}


def _base_rows(base: RoutingTrace, trace: RoutingTrace) -> dict[str, str]:
    """Return by unit: 0 where the strongest one is the same in the base model, else 1 + the base model's unit."""
    found = {unit: np.where(flips(base, trace, unit), strongest(base, unit).astype("<u2") + 1, 0) for unit in UNITS}
    return {unit: _base64(other.astype("<u2").transpose(2, 0, 1)) for unit, other in found.items()}  # [T, L, N]


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
