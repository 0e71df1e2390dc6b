"""The status line at the top of the page: model state, progress and training, and what to do about a failed load."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.backend.chat.engine import EngineStatus
from studio.backend.hosting import demo
from studio.ui.common.listeners import AT_ONCE, QUIET
from studio.ui.common.shown_errors import shows_errors
from studio.ui.server.identity import owner_of

if TYPE_CHECKING:
    from studio.backend.chat.engine import Engine
    from studio.backend.training.queue import Jobs

BUTTONS = (("Cancel download", "cancel-download"), ("Retry", "retry-loading"), ("Go back", "go-back"))
SPEEDS = {
    "eager": "",
    "native": "",
    "compiling": "Compiling in the background for faster answers …",
    "compiled": "Compiled: answers are now faster.",
}


class StatusLine:
    """The components. `actions` belongs below the masthead: it is shown while there is something to do."""

    def __init__(self, engine: Engine) -> None:
        self.line = gr.HTML(banner(engine.status()), elem_id="status", js_on_load=None)

    def add_actions(self, engine: Engine, jobs: Jobs) -> None:
        """Create the buttons, and the timer that updates them and the line."""
        offered = actions(engine.status())
        with gr.Row(visible=any(offered), elem_id="loading-actions") as row:
            cancel, retry, back = (
                gr.Button(label, visible=visible, size="sm", elem_id=elem_id)
                for (label, elem_id), visible in zip(BUTTONS, offered, strict=True)
            )

        def poll(request: gr.Request, before: str) -> Any:
            status = engine.status()
            now = banner(status, jobs.status(owner_of(request)))
            if now == before:
                return [gr.skip()] * 5
            offered = actions(status)
            return [now, gr.update(visible=any(offered)), *(gr.update(visible=visible) for visible in offered)]

        shown = [self.line, row, cancel, retry, back]
        gr.Timer(1.5).tick(poll, self.line, shown, **AT_ONCE)
        for button, act in (
            (cancel, engine.loader.cancel),
            (retry, engine.loader.retry),
            (back, engine.loader.go_back),
        ):
            # Queued, because Gradio shows no message from unqueued events.
            button.click(_acting(act), None, None, **QUIET)


def _acting(act: Callable[[], None]) -> Callable[[], None]:
    @shows_errors
    def run() -> None:
        if limits := demo.limits():
            limits.refuse_another_model()
        act()

    return run


def actions(status: EngineStatus) -> tuple[bool, bool, bool]:
    """Return whether to offer "Cancel download", "Retry" and "Go back"; none of them in a demo."""
    change = status.change
    if change is None or demo.limits():
        return False, False, False
    has_failed = change.state == "failed"
    return change.state == "preparing", has_failed, has_failed and change.back_to is not None


def banner(status: EngineStatus, training: str = "") -> str:
    """Return the status as escaped HTML. `training` is a sentence about the training queue."""
    change = status.change
    state, text, progress = (change or status).state, (change or status).text, (change or status).progress
    if change is None and state == "ready":
        text = _ready(status)
    elif change is not None and status.state == "ready":
        text = f"{text} {status.title} still answers."
    is_busy = state in ("preparing", "loading")
    bar = _bar(progress) if is_busy and progress is not None else ""
    return (
        f'<div class="status status-{"busy" if is_busy else state}" data-state="{state}"><span class="dot"></span>'
        f"<span>{escape(f'{text} {training}'.strip())}</span>{bar}</div>"
    )


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
