"""One server with the real starter for all browser tests; a fresh browser context for each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.e2e.studio_page import Server, StudioPage, chromium, free_port

# A page is as quick as the machine that it shares with the model, trainers and other pages.
expect.set_options(timeout=20_000)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(free_port(), tmp_path_factory.mktemp("server") / "log.txt")
    yield running
    running.stop()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Page]:
    """A page at 1280 x 800 or `@pytest.mark.parametrize("size", ...)`; nothing may reach its console as an error."""
    width, height = (
        request.node.callspec.params.get("size", (1280, 800)) if hasattr(request.node, "callspec") else (1280, 800)
    )
    context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
    opened = context.new_page()
    errors: list[str] = []
    opened.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    hacked = opened.evaluate("window.__p") if not opened.is_closed() else None
    context.close()
    assert hacked is None, "text of a person or a model ran as code"
    assert not errors, "\n".join(errors)


@pytest.fixture
def studio(page: Page, server: Server) -> StudioPage:
    return StudioPage(page, server.url).open()
