"""Options that the page's event listeners share: `button.click(handler, inputs, outputs, **QUIET)`."""

from typing import Any

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
AT_ONCE: dict[str, Any] = {**QUIET, "queue": False}
"""Bypass Gradio's queue. Such an event can show no message."""
