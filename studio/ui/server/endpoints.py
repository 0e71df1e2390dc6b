"""Requests for endpoints, components and sessions that don't exist, which Gradio answers with an internal error.

problem_of(blocks, "POST", "/gradio_api/run/predict", {"fn_index": 999})      # (404, "There is no such …")
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import gradio as gr

API = "/gradio_api"
NO_ENDPOINT = "There is no such endpoint. Reload the page, or see “Use via API” at its foot."
NO_SESSION = "There is no such event: it has ended, or the server was restarted. Send it again."
CALL = re.compile(rf"{API}/call/(?P<public>v2/)?(?P<name>[^/]+)/?")
RUN = re.compile(rf"{API}/(?:run|api)/(?P<name>[^/]+)/?")
RESULT = re.compile(rf"{API}/call/(?:v2/)?[^/]+/(?P<event>[^/]+)")


def problem_of(blocks: gr.Blocks, method: str, path: str, values: dict[str, Any]) -> tuple[int, str] | None:
    """Return a status and a sentence if nothing can answer a request.

    Args:
        values: the JSON object in the body, if it was read; the values of the query otherwise.
    """
    is_there = True
    if method == "POST":
        if found := CALL.fullmatch(path):
            return _problem_of_call(blocks, found["name"], values if found["public"] else None)
        if found := RUN.fullmatch(path):
            is_there = is_function(blocks, values.get("fn_index"), found["name"])
        elif path.startswith(f"{API}/component_server"):
            is_there = _is_component(blocks, values.get("component_id"), values.get("fn_name"))
        return None if is_there else (404, NO_ENDPOINT)
    if path == f"{API}/queue/data" and "session_hash" in values:
        is_there = values["session_hash"] in blocks._queue.pending_messages_per_session
    elif found := RESULT.fullmatch(path):
        is_there = _has_event(blocks, found["event"])
    return None if is_there else (404, NO_SESSION)


def _problem_of_call(blocks: gr.Blocks, name: str, arguments: dict[str, Any] | None) -> tuple[int, str] | None:
    """Return a problem with the endpoint or, if they have names, with its arguments."""
    is_named = arguments is not None
    visible = [each for each in blocks.fns.values() if not is_named or each.api_visibility == "public"]
    function = next((each.fn for each in visible if each.api_name == name), None)
    if function is None:
        return 404, NO_ENDPOINT
    known = inspect.signature(function).parameters.values() if is_named else ()
    needed = {each.name for each in known if each.default is each.empty}
    if is_named and not needed <= {*(arguments or {})} <= {each.name for each in known}:
        return 422, f"/{name} takes {', '.join(each.name for each in known)}; it needs {', '.join(sorted(needed))}."
    return None


def is_function(blocks: gr.Blocks, fn_index: Any, name: str = "") -> bool:
    """Return whether a function has this number or, without a number, this name."""
    if fn_index is None:
        return any(fn.api_name == name for fn in blocks.fns.values())
    return isinstance(fn_index, int) and fn_index in blocks.fns


def _is_component(blocks: gr.Blocks, component_id: Any, fn_name: Any) -> bool:
    component = blocks.blocks.get(component_id) if isinstance(component_id, int) else None
    return component is not None and isinstance(fn_name, str) and hasattr(component, fn_name)


def _has_event(blocks: gr.Blocks, event: str) -> bool:
    queue = blocks._queue
    sessions = queue.pending_event_ids_session
    is_pending = event in queue.event_ids_to_events or any(event in ids for ids in sessions.values())
    return is_pending or event in queue.pending_messages_per_session
