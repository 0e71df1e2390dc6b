"""A Space, and a browser that refuses storage and cookies to frames, for all tests of this folder."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext, Playwright

from tests.builders.fake_hub import FakeHub, serving_hub
from tests.builders.toy_folder import spelling_toy
from tests.e2e.conftest import PATIENCE
from tests.e2e.space.openid import NAME, serving_sign_in
from tests.e2e.space.surroundings import HOST, HUB, Space, surroundings
from tests.e2e.studio_page import chromium

# Settings of Chromium: no third-party cookies, which includes the storage of frames.
BLOCKING = {"profile": {"cookie_controls_mode": 1, "block_third_party_cookies": True}}


@pytest.fixture(scope="package")
def hub() -> Iterator[FakeHub]:
    with serving_hub(f"{NAME}/pirate") as serving:
        yield serving


@pytest.fixture(scope="package")
def space(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    folder = tmp_path_factory.mktemp("space")
    model = spelling_toy(folder / "models" / "toy", max_position_embeddings=4096)
    with serving_sign_in() as provider:
        variables = {**provider.environment, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
        with surroundings(folder, model, **variables) as started:
            yield started


@pytest.fixture(scope="package")
def blocking(
    playwright: Playwright, space: Space, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BrowserContext]:
    profile = tmp_path_factory.mktemp("profile")
    (profile / "Default").mkdir()
    (profile / "Default" / "Preferences").write_text(json.dumps(BLOCKING))
    context = playwright.chromium.launch_persistent_context(
        profile,
        executable_path=chromium("chromium"),  # the shell without a window has no such settings
        headless=True,
        args=[
            "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu",
            "--host-resolver-rules=" + ", ".join(f"MAP {host} 127.0.0.1:{space.port}" for host in (HUB, HOST)),
        ],
        ignore_https_errors=True,
        accept_downloads=True,
    )  # fmt: skip
    context.set_default_timeout(PATIENCE)
    yield context
    context.close()
