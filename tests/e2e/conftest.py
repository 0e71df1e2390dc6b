"""The servers and the browser of all browser tests; a fresh browser context for each.

Tests use the toy in this process (`toy`, or `studio`, a page of it) unless they need the real starter, other flags or
variables, or a server that is killed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, expect, sync_playwright

from tests.builders.ports import free_port
from tests.builders.served import Steps, ToyStudio, toy_studio
from tests.e2e.studio_page import Server, StudioPage, chromium

# A page is as quick as the machine that it shares with models, trainers and other pages: beside two busy loops, a click
# waited for more than half a minute.
PATIENCE = 120_000
expect.set_options(timeout=60_000)
# What Gradio writes to the console if a page is left, or loaded again, while it listens to the server.
ENDS_OF_STREAMS = ("AbortError: signal is aborted", "Connection errored out")


@pytest.fixture(scope="session")
def toy(worker_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToyStudio]:
    with toy_studio(tmp_path_factory.mktemp("model") / "toy") as served:
        yield served


@pytest.fixture
def steps(toy: ToyStudio) -> Iterator[Steps]:
    """The toy's decoding steps, which the test lets happen."""
    toy.steps.hold()
    yield toy.steps
    toy.steps.allow()


@pytest.fixture(scope="session")
def starter_server(starter_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`app.py` with the real starter."""
    running = Server(free_port(), tmp_path_factory.mktemp("server") / "log.txt")
    yield running
    running.stop()


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="session")
def browser(playwright: Playwright) -> Iterator[Browser]:
    started = playwright.chromium.launch(
        executable_path=chromium(), args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
    )
    new_context = started.new_context

    def patient_context(**options: Any) -> BrowserContext:
        context = new_context(**options)
        context.set_default_timeout(PATIENCE)
        return context

    started.new_context = patient_context  # type: ignore[method-assign]
    yield started
    started.close()


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page at 1280 x 800 or `@pytest.mark.parametrize("size", ...)`; nothing may reach its console as an error."""
    width, height = (
        request.node.callspec.params.get("size", (1280, 800)) if hasattr(request.node, "callspec") else (1280, 800)
    )
    context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
    opened = context.new_page()
    errors: list[str] = []
    visits: list[str] = []
    opened.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("domcontentloaded", lambda loaded: visits.append(loaded.url))
    yield opened
    if len(visits) > 1:
        errors = [error for error in errors if not any(end in error for end in ENDS_OF_STREAMS)]
    hacked = opened.evaluate("window.__p") if not opened.is_closed() else None
    context.close()
    assert hacked is None, "text of a person or a model ran as code"
    assert not errors, "\n".join(errors)


@pytest.fixture
def studio(page: Page, toy: ToyStudio) -> StudioPage:
    """The toy's page, open and ready."""
    return StudioPage(page, toy.url).open()


@pytest.fixture
def starter_page(page: Page, starter_server: Server) -> StudioPage:
    """The starter's page, open and ready."""
    return StudioPage(page, starter_server.url).open()
