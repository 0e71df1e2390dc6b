"""The panel of training runs: the list, the open run, and a comparison of several runs.

    panel = runs_panel()                                # a gr.HTML component
    panel.act(act, panel)                               # {"action": "cancel" | "resume" | "delete" | ..., "id"}
    panel.again(again)                                  # {"id"}: a new run from the settings of this one
    yield opened(run.id)                                # a new value that opens this run

The page polls for new data (`ui/server/run_routes.py`), so closing it loses nothing. `?run=` in its URL names the open
run, and `?compare=` the compared runs. The template is constant, and all text arrives as data that becomes text nodes,
because gr.HTML would execute code in a template.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import gradio as gr

from studio.ui.server.scripts import mounting

HERE = Path(__file__).parent


def runs_panel() -> gr.HTML:
    """Return the component.

    Its event "act" has a button's action, "again" the id of the run whose settings the form gets, and "open" the id of
    the opened run ("" if none).
    """
    return gr.HTML(
        value="",
        html_template=(HERE / "runs.html").read_text(encoding="utf-8"),
        js_on_load=mounting("finetune/runs/runs.js", events=("act", "again", "open")),
        apply_default_css=False,
        elem_id="runs",
    )


def opened(run_id: str) -> str:
    """Return the value that opens a run, even one that was just closed."""
    return json.dumps({"open": run_id, "at": time.time()})


def style() -> str:
    return (HERE / "runs.css").read_text(encoding="utf-8")
