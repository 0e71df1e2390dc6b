"""What handlers of the Chat tab return: new values for its outputs."""

from __future__ import annotations

from typing import Any, NamedTuple

import gradio as gr


class Shown(NamedTuple):
    """New values of the tab's outputs, in their order; None leaves an output unchanged."""

    chat: Any = None
    stored: Any = None
    box: Any = None
    routing: Any = None
    stats: Any = None
    system: Any = None
    base_chat: Any = None
    base_stats: Any = None
    title: Any = None
    """Heading of the conversation when two are side by side."""
    base_side: Any = None
    """Column of the base model's conversation."""
    notice: Any = None
    """Warning to show once the page is open."""
    raw: Any = None
    """Whether the conversation is a raw completion."""

    def values(self) -> tuple[Any, ...]:
        return tuple(gr.skip() if value is None else value for value in self)


def idle(text: str | None = None) -> Any:
    """Return the text box ready to send; `text` replaces its content."""
    return _box(text, submit_btn="Send", stop_btn=False)


def busy(text: str | None = None) -> Any:
    return _box(text, submit_btn=False, stop_btn="Stop")


def _box(text: str | None, **changes: Any) -> Any:
    return gr.update(**(changes if text is None else changes | {"value": text}))
