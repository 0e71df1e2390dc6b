"""The studio as a Space of two cores starts it; on ZeroGPU it is `test_zero_gpu.py`, and what a GPU changes is in
`tests/studio/backend/models/test_placement.py`."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.builders.ports import free_port
from tests.e2e.studio_page import SLOW, Server

SPACE = {"SPACE_ID": "me/studio", "SYSTEM": "spaces", "GRADIO_SERVER_NAME": "0.0.0.0", "HF_HUB_OFFLINE": "1"}

# Gradio's page of a Space asks the hub how it is, which is out of reach here, and wants fonts of others.
EXPECTED = ("fonts.googleapis.com", "Space not found", "net::ERR_")


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Server]:
    """A new Space that downloads what its starter is made of, from an index that takes its time."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = {
            "STUDIO_HOME": str(tmp_path / "home"), "CUDA_VISIBLE_DEVICES": "", "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": f"http://127.0.0.1:{silent.getsockname()[1]}/simple",
        }  # fmt: skip
        server = Server(free_port(), tmp_path / "log.txt", **SPACE, **environment)
        yield server
        server.stop()


@pytest.fixture
def page(browser: Browser, space: Server) -> Iterator[Page]:
    """Closes before the server stops: an open page would log errors."""
    page = browser.new_page()
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    yield page
    page.close()
    assert not [error for error in errors if not any(each in error for each in EXPECTED)]


def test_on_two_cores_the_page_is_there_while_the_starter_is_made(page: Page, space: Server):
    page.goto(space.url)
    status = page.locator("#status")
    expect(status.locator(".status-busy")).to_be_visible(timeout=SLOW)
    expect(status.get_by_role("progressbar")).to_be_visible()
    expect(page.locator("#demo")).to_contain_text("answers of up to 256 tokens")
    link = page.get_by_role("link", name="Duplicate this Space")
    expect(link).to_have_attribute("href", "https://huggingface.co/spaces/me/studio?duplicate=true")
    page.locator("#box textarea").fill("Hello")
    page.locator("#box .submit-button").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("The model isn't ready yet", timeout=SLOW)
    expect(page.locator("#box textarea")).to_have_value("Hello")
