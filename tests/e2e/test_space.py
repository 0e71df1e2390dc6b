"""The studio as each kind of Space starts it: on two cores, on a GPU, and on ZeroGPU with `test_zero_gpu.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.studio_page import SLOW, Server, free_port
from tests.e2e.zero_gpu_space import ZeroGpu

SPACE = {"SPACE_ID": "me/studio", "SYSTEM": "spaces", "GRADIO_SERVER_NAME": "0.0.0.0", "HF_HUB_OFFLINE": "1"}
A_GPU = "import sys, bitsandbytes, torch; torch.cuda.is_available = lambda: True; import app; sys.exit(app.main())"

Start = Callable[..., Server]
# Gradio's page of a Space asks the hub how it is, which is out of reach here, and wants fonts of others.
EXPECTED = ("fonts.googleapis.com", "Space not found", "net::ERR_")


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page()
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    yield page
    page.close()
    assert not [error for error in errors if not any(each in error for each in EXPECTED)]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Server] = []

    def start(*script: str, **environment: str) -> Server:
        kind = type("SpaceServer", (Server,), {"script": script})
        home = {"STUDIO_HOME": str(tmp_path / "home")}
        started.append(kind(free_port(), tmp_path / "log.txt", **SPACE | home | environment))
        return started[-1]

    yield start  # and the page is closed before its server
    for server in started:
        server.stop()


def test_on_two_cores_the_page_is_there_while_the_starter_is_made(start: Start, page: Page):
    page.goto(start("app.py", CUDA_VISIBLE_DEVICES="").url)
    status = page.locator("#status")
    expect(status.locator(".status-busy")).to_be_visible(timeout=SLOW)
    expect(status.get_by_role("progressbar")).to_be_visible()
    expect(page.locator("#demo")).to_contain_text("answers of 256 tokens")
    link = page.get_by_role("link", name="Duplicate this Space")
    expect(link).to_have_attribute("href", "https://huggingface.co/spaces/me/studio?duplicate=true")
    page.locator("#box textarea").fill("Hello")
    page.locator("#box .submit-button").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("The model isn't ready yet", timeout=SLOW)
    expect(page.locator("#box textarea")).to_have_value("Hello")


def test_on_a_gpu_it_is_the_8b_model(start: Start, page: Page):
    page.goto(start("-c", A_GPU, STUDIO_DEMO="0").url)
    expect(page.locator("#status .status-failed")).to_contain_text("jetmoe/jetmoe-8b-chat can't be downloaded")
    expect(page.locator("#demo")).to_have_count(0)


def test_on_zero_gpu_too(start: Start, page: Page):
    gpu = ZeroGpu()
    page.goto(start("-m", "tests.e2e.zero_gpu_space", **gpu.environment).url)
    expect(page.locator("#status .status-failed")).to_contain_text("jetmoe/jetmoe-8b-chat can't be downloaded")
    assert gpu.paths() == ["/startup-report"]
    gpu.close()
