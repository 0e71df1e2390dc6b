"""The page below a path of another server, where every address has to be relative to the page."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest
import uvicorn
from fastapi import FastAPI
from playwright.sync_api import Page, expect
from starlette.middleware import Middleware

from studio.backend.runs.store import RunStore
from studio.backend.runs.views import RunViews
from studio.ui.finetune.runs.runs_panel import runs_panel
from studio.ui.routing.routing_panel import message, routing_panel
from studio.ui.server import run_routes, scripts
from studio.ui.server.headers import SafeHeaders
from studio.ui.server.identity import Identity
from tests.builders.ports import free_port
from tests.builders.toy_runs import toy_run
from tests.builders.traces import make_trace
from tests.builders.waiting import until


@pytest.fixture
def below(tmp_path: Path) -> Iterator[str]:
    store = RunStore(tmp_path)
    toy_run(store, "below a path").train(20)
    with gr.Blocks(analytics_enabled=False) as demo:
        runs_panel()
        panel = routing_panel()
        demo.load(lambda: message("f" * 32, make_trace(), 0, 0, 0), None, panel, queue=False)
    app = gr.mount_gradio_app(
        FastAPI(), demo, path="/studio", ssr_mode=False, app_kwargs={
            "middleware": [Middleware(SafeHeaders), Middleware(Identity)],
            "routes": [*run_routes.routes(RunViews(store)), *scripts.routes()],
        },
    )  # fmt: skip
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started, 60)
    yield f"http://127.0.0.1:{port}/studio/"
    server.should_exit = True
    thread.join(30)


def test_panels_find_their_scripts_and_data(page: Page, below: str):
    page.goto(below)
    expect(page.locator(".rn-row-name")).to_have_text("below a path")
    expect(page.locator("#routing .rp-answer-tokens .rp-tok")).to_have_count(30)
