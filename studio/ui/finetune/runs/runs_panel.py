"""The panel that shows training runs: the list, the opened one while it trains, and several compared.

    panel = runs_panel()                                # a gr.HTML component
    panel.act(act, panel)                               # {"action": "cancel" | "resume" | "delete" | ..., "id"}
    yield opened(run.id)                                # its new value: the page opens this run

The page asks by itself for what is new (`watching.py`), so nothing is lost by closing it, and `?run=` in its address
names the opened run. Its template is constant, and all text reaches it as data that becomes text nodes: gr.HTML would
run what is put through a template.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import gradio as gr

HERE = Path(__file__).parent
DOM = HERE.parents[1] / "common" / "dom.js"
SCRIPTS = (
    "numbers", "pieces", "run_data", "poll", "scale", "twin", "chart", "board", "heat_map", "samples", "audit",
    "comparison", "run_page", "list", "runs",
)  # fmt: skip


def runs_panel() -> gr.HTML:
    """The component. Its event "act" asks for what a button says, "open" tells which run is opened ("" for none)."""
    return gr.HTML(
        value="",
        html_template=(HERE / "runs.html").read_text(encoding="utf-8"),
        js_on_load=_script(),
        apply_default_css=False,
        elem_id="runs",
    )


def opened(run_id: str) -> str:
    """The value that makes the page open a run, even one that it has just closed."""
    return json.dumps({"open": run_id, "at": time.time()})


def style() -> str:
    return (HERE / "runs.css").read_text(encoding="utf-8")


def _script() -> str:
    files = [DOM, *(HERE / f"{name}.js" for name in SCRIPTS)]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)
