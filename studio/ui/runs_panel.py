"""The panel that shows training runs: the list, the opened one while it trains, and several compared.

    panel = runs_panel(RunViews(store))     # a gr.HTML component
    panel.act(act, panel)                               # {"action": "cancel" | "resume" | "delete" | ..., "id"}
    yield opened(run.id)                                # its new value: the page opens this run

The page asks by itself for what is new, so nothing is lost by closing it, and `?run=` in its address names the opened
run. Its template is constant, and all text reaches it as data that becomes text nodes: gr.HTML would run what is put
through a template.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import gradio as gr

from studio.backend.run_views import RunViews
from studio.ui.identity import owner_of

HERE = Path(__file__).parent
SCRIPTS = (
    "numbers", "pieces", "run_data", "poll", "scale", "twin", "chart", "board", "heat_map", "samples", "audit",
    "comparison", "run_page", "list", "runs",
)  # fmt: skip


def runs_panel(views: RunViews) -> gr.HTML:
    """The component. Its event "act" asks for what a button says, "open" tells which run is opened ("" for none)."""

    async def read(*run_ids: str) -> None:
        """In a thread, and else no thread is asked: hundreds of answers a second would wait for the model's."""
        if views.is_due(*run_ids):
            await anyio.to_thread.run_sync(views.refresh, *run_ids)

    # Named unlike the component's own attributes, of which gr.HTML makes them members.
    async def run_list(asked: Any, request: gr.Request) -> dict[str, Any]:
        await read()
        return views.listing(owner_of(request))

    async def run_events(asked: Any, request: gr.Request) -> dict[str, Any]:
        """Called by the page with `[run id, last seq that it has]`."""
        if not (isinstance(asked, list) and len(asked) == 2 and _is_id(asked[0]) and _is_count(asked[1])):
            return {"run": None, "events": [], "more": False, "now": time.time()}
        await read(asked[0])
        return views.events(asked[0], asked[1], owner_of(request))

    def run_comparison(asked: Any, request: gr.Request) -> dict[str, Any]:
        """Called by the page with run ids."""
        run_ids = asked if isinstance(asked, list) and all(map(_is_id, asked)) else []
        return views.comparison(run_ids, owner_of(request))

    return gr.HTML(
        value="",
        html_template=(HERE / "runs" / "runs.html").read_text(encoding="utf-8"),
        js_on_load=_script(),
        apply_default_css=False,
        server_functions=[run_list, run_events, run_comparison],
        elem_id="runs",
    )


def opened(run_id: str) -> str:
    """The value that makes the page open a run, even one that it has just closed."""
    return json.dumps({"open": run_id, "at": time.time()})


def style() -> str:
    return (HERE / "runs" / "runs.css").read_text(encoding="utf-8")


def _script() -> str:
    files = [HERE / "panel" / "dom.js", *(HERE / "runs" / f"{name}.js" for name in SCRIPTS)]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def _is_id(value: object) -> bool:
    return isinstance(value, str) and len(value) == 36


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**53
