"""The page of a demo while its first model is prepared, after that fails, and once it is there."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from studio.backend.chat.engine import Engine
from studio.backend.chat.loading import growing_waits
from studio.backend.hosting.exposure import Exposure
from tests.builders.fake_repos import TINY, FakeRepos
from tests.builders.served import serving
from tests.e2e.studio_page import SLOW, StudioPage


def test_visitors_can_wait_for_the_first_model_on_the_page(page: Page, repos: FakeRepos, monkeypatch, tmp_path):
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path))
    monkeypatch.setenv("STUDIO_DEMO", "1")
    repos.gate.hold()
    engine = Engine(compile_steps=False)
    engine.start_loading(TINY, waits=growing_waits(2.0, 2.0))
    with serving(engine, Exposure(public=True)) as url:
        studio = StudioPage(page, url)
        page.goto(url)
        status = page.locator("#status")
        expect(status.locator(".status-busy")).to_contain_text("Downloading", timeout=SLOW)
        expect(status.get_by_role("progressbar")).to_be_visible()
        studio.ask("Hello")
        expect(studio.toast).to_contain_text("The model isn't ready yet", timeout=SLOW)
        expect(studio.box).to_have_value("Hello")
        repos.cut = "model-00004-of-00004.safetensors"
        repos.gate.allow()
        expect(status).to_contain_text("can't be loaded at the moment. The studio tries again in", timeout=SLOW)
        repos.heal()
        expect(status.locator(".status-ready")).to_be_visible(timeout=SLOW)
        studio.set_length(4)
        assert studio.ask_and_wait("Hello")
        page.close()
