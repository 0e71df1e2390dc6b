"""Options that the page's event listeners share: `button.click(handler, inputs, outputs, **QUIET)`."""

from typing import Any

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
AT_ONCE: dict[str, Any] = {**QUIET, "queue": False}
"""Bypass Gradio's queue. Such an event can show no message."""
ANSWERING: dict[str, Any] = {"concurrency_id": "chat", "concurrency_limit": 8}
CLASSIFYING: dict[str, Any] = {"concurrency_id": "classify", "concurrency_limit": 8}
"""The events that use the model; those of the page and those of the API count together."""
