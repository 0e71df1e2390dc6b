"""Requests for endpoints, components and sessions that don't exist, which Gradio answers with an internal error.

problem_of(blocks, "POST", "/gradio_api/run/predict", {"fn_index": 999})      # "There is no such endpoint. …"
"""

from __future__ import annotations

import re
from typing import Any

import gradio as gr

API = "/gradio_api"
NO_ENDPOINT = "There is no such endpoint. Reload the page, or see “Use via API” at its foot."
NO_SESSION = "There is no such event: it has ended, or the server was restarted. Send it again."
CALL = re.compile(rf"{API}/call/(?P<public>v2/)?(?P<name>[^/]+)/?")
RUN = re.compile(rf"{API}/(?:run|api)/(?P<name>[^/]+)/?")
RESULT = re.compile(rf"{API}/call/(?:v2/)?[^/]+/(?P<event>[^/]+)")


def problem_of(blocks: gr.Blocks, method: str, path: str, values: dict[str, Any]) -> str:
    """Return a sentence if nothing could answer a request.

    Args:
        values: the JSON object in the body, if it was read; the values of the query otherwise.
    """
    if method == "POST":
        if found := CALL.fullmatch(path):
            fns = [fn for fn in blocks.fns.values() if not found["public"] or fn.api_visibility == "public"]
            return "" if any(fn.api_name == found["name"] for fn in fns) else NO_ENDPOINT
        if found := RUN.fullmatch(path):
            return "" if is_function(blocks, values.get("fn_index"), found["name"]) else NO_ENDPOINT
        if path.startswith(f"{API}/component_server"):
            return "" if _is_component(blocks, values.get("component_id"), values.get("fn_name")) else NO_ENDPOINT
        return ""
    if path == f"{API}/queue/data" and "session_hash" in values:
        return "" if values["session_hash"] in blocks._queue.pending_messages_per_session else NO_SESSION
    found = RESULT.fullmatch(path)
    return "" if found is None or _has_event(blocks, found["event"]) else NO_SESSION


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
