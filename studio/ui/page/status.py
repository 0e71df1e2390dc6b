"""The status line at the top of the page: model state, progress and training, and what to do about a failed load."""

from __future__ import annotations

import time
from collections.abc import Callable
from hashlib import sha256
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from studio.backend.chat.engine import EngineStatus
from studio.backend.chat.loading import Change
from studio.backend.hosting import demo
from studio.backend.system.home import home, is_mounted
from studio.ui.common.listeners import AT_ONCE, QUIET
from studio.ui.common.shown_errors import shows_errors
from studio.ui.server import sign_in
from studio.ui.server.identity import owner_of
from studio.ui.server.scripts import mounting

if TYPE_CHECKING:
    from studio.backend.chat.engine import Engine
    from studio.backend.training.queue import Jobs

BUTTONS = (("Cancel download", "cancel-download"), ("Retry", "retry-loading"), ("Go back", "go-back"))
CONNECTING = EngineStatus("preparing", text="Connecting …")
SPEEDS = {
    "eager": "",
    "native": "",
    "compiling": "Compiling in the background for faster answers …",
    "compiled": "Compiled: answers are now faster.",
}


class StatusLine:
    """The line, and the buttons below the masthead, which are shown while there is something to do."""

    def __init__(self) -> None:
        # Built once for all visitors, so it must not show the state of the model.
        self.line = gr.HTML(banner(CONNECTING), elem_id="status", js_on_load=None)

    def add_actions(self, engine: Engine, jobs: Jobs) -> None:
        """Create the buttons, and what updates them and the line."""
        offered = actions(engine.status())
        with gr.Row(visible=any(offered), elem_id="loading-actions") as row:
            cancel, retry, back = (
                gr.Button(label, visible=visible, size="sm", elem_id=elem_id)
                for (label, elem_id), visible in zip(BUTTONS, offered, strict=True)
            )

        def update(request: gr.Request) -> Any:
            now = present(engine, jobs, owner_of(request))
            line = f'<div data-version="{now.version}">{now.line}</div>'
            return [line, gr.update(visible=any(now.offered)), *(gr.update(visible=each) for each in now.offered)]

        watch: Any = gr.HTML(js_on_load=mounting("page/status.js", events=("change",)), elem_id="status-watch")
        watch.change(update, None, [self.line, row, cancel, retry, back], **AT_ONCE)
        for button, act in (
            (cancel, engine.loader.cancel),
            (retry, engine.loader.retry),
            (back, engine.loader.go_back),
        ):
            # Queued, because Gradio shows no message from unqueued events.
            button.click(_acting(act), None, None, **QUIET)


def routes(engine: Engine, jobs: Jobs) -> list[Route]:
    """Return the route that pages poll: GET watch/status, the version of the visitor's status line."""

    def version(request: Request) -> Response:
        now = present(engine, jobs, owner_of(request))
        return PlainTextResponse(now.version, headers={"Cache-Control": "no-store"})

    return [Route("/watch/status", version, methods=["GET"])]


class Present(NamedTuple):
    """What the page of an owner shows now."""

    line: str
    offered: tuple[bool, bool, bool]
    """Which of the buttons are visible."""

    @property
    def version(self) -> str:
        return sha256(repr(self).encode()).hexdigest()[:16]


def present(engine: Engine, jobs: Jobs, owner: str) -> Present:
    status = engine.status()
    return Present(banner(status, jobs.status(owner), sign_in.is_host(owner)), actions(status))


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


def banner(status: EngineStatus, training: str = "", is_host: bool = False) -> str:
    """Return the status as escaped HTML.

    Args:
        training: a sentence about the training queue.
        is_host: whether it is shown to the owner of the Space, who can act on a failure.
    """
    change = status.change
    state, text, progress = (change or status).state, (change or status).text, (change or status).progress
    if change is not None and change.state == "failed":
        text = _failure(change, is_host)
    details = ""
    if change is None and state == "ready":
        text, details = f"{status.title} is ready. {status.warning}".strip(), _details(status)
    elif change is not None and status.state == "ready":
        text = f"{text} {status.title} still answers."
    is_busy = state in ("preparing", "loading")
    bar = _bar(progress) if is_busy and progress is not None else ""
    return (
        f'<div class="status status-{"busy" if is_busy else state}" data-state="{state}"><span class="dot"></span>'
        f"{_line(f'{text} {training}'.strip(), details)}{bar}</div>"
    )


def _line(text: str, details: str) -> str:
    if not details:
        return f"<span>{escape(text)}</span>"
    return f"<details><summary>{escape(text)}</summary><p>{escape(details)}</p></details>"


def _failure(change: Change, is_host: bool) -> str:
    text = change.reason if is_host else change.text
    if change.retry_at is not None:
        text += f" The studio tries again in {max(0, round(change.retry_at - time.monotonic()))} s."
    if is_host:
        text += " If that does not help, restart the Space in its settings; its logs have the details."
    return text


def demo_note() -> str:
    """Return HTML with the demo's limits and a link to duplicate the Space; empty outside a demo."""
    limits, space = demo.limits(), demo.space_id()
    if limits is None:
        return ""
    own = (
        f'<a href="https://huggingface.co/spaces/{escape(space, quote=True)}?duplicate=true" target="_blank" '
        'rel="noopener">Duplicate this Space</a> and set its variable STUDIO_DEMO to 0 to run your own without limits.'
        if space
        else ""
    )
    forgets = "" if space is None or is_mounted(home()) else "This Space forgets runs when it sleeps: export yours."
    return f'<p class="demo-note">{escape(limits.sentence())} {forgets} {own}</p>'


def _details(status: EngineStatus) -> str:
    parts = [status.text, _sentence(status.memory), SPEEDS.get(status.speed, _sentence(status.speed))]
    return " ".join(part for part in parts if part)


def _sentence(speed: str) -> str:
    return f"{speed[:1].upper()}{speed[1:].rstrip('.')}." if speed else ""


def _bar(progress: float) -> str:
    percent = max(0, min(100, round(100 * progress)))
    return (
        f'<span class="bar" role="progressbar" aria-label="Loading the model" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{percent}"><i style="width:{percent}%"></i></span>'
    )
