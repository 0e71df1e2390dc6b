"""The status line at the top of the page: model state, progress and training."""

from __future__ import annotations

from html import escape

from studio.backend.chat.engine import EngineStatus
from studio.backend.hosting import demo

SPEEDS = {
    "eager": "",
    "compiling": "Compiling in the background for faster answers …",
    "compiled": "Compiled: answers are now faster.",
}


def banner(status: EngineStatus, training: str = "") -> str:
    """Return the status as escaped HTML. `training` is a sentence about the training queue."""
    state = "busy" if status.state in ("preparing", "loading") else status.state
    sentence = status.text if status.state != "ready" else _ready(status)
    sentence = f"{sentence} {training}".strip()
    bar = "" if status.progress is None or state != "busy" else _bar(status.progress)
    return f'<div class="status status-{state}"><span class="dot"></span><span>{escape(sentence)}</span>{bar}</div>'


def demo_note() -> str:
    """Return HTML with the demo's limits and a link to duplicate the Space; empty outside a demo."""
    limits, space = demo.limits(), demo.space_id()
    if limits is None:
        return ""
    own = (
        f'<a href="https://huggingface.co/spaces/{escape(space, quote=True)}?duplicate=true" target="_blank" '
        'rel="noopener">Duplicate this Space</a> to run your own.'
        if space
        else ""
    )
    return f'<p class="demo-note">{escape(limits.sentence())} {own}</p>'


def _ready(status: EngineStatus) -> str:
    return f"{status.text} {_sentence(status.memory)} {SPEEDS.get(status.speed, _sentence(status.speed))}".strip()


def _sentence(speed: str) -> str:
    return f"{speed[:1].upper()}{speed[1:].rstrip('.')}." if speed else ""


def _bar(progress: float) -> str:
    percent = max(0, min(100, round(100 * progress)))
    return (
        f'<span class="bar" role="progressbar" aria-label="Loading the model" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{percent}"><i style="width:{percent}%"></i></span>'
    )
