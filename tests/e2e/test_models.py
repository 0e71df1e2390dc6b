"""Another model: what it needs, the question before its download, a cut line, and the model that answers meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.builders.fake_repos import TINY, FakeRepos
from tests.builders.served import ToyStudio, toy_studio
from tests.e2e.studio_page import SLOW, StudioPage

LAST = "model-00004-of-00004.safetensors"


@pytest.fixture(scope="module")
def own_toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToyStudio]:
    """A studio whose model these tests may change."""
    with toy_studio(tmp_path_factory.mktemp("model") / "toy") as toy:
        yield toy


class ModelPage(StudioPage):
    def __init__(self, page: Page, url: str) -> None:
        super().__init__(page, url)
        self.status = page.locator("#status")
        self.panel = page.locator("#model-panel")
        self.load_button = self.panel.locator("#model-load")
        self.cancel_button = page.get_by_role("button", name="Cancel download")
        self.retry_button = page.locator("#retry-loading")
        self.back_button = page.locator("#go-back")

    def look_up(self, text: str) -> None:
        """With the keyboard alone."""
        self._advanced()
        self.page.get_by_label("Another model of the Hub").fill(text)
        self.page.keyboard.press("Enter")


@pytest.fixture
def models(page: Page, own_toy: ToyStudio, repos: FakeRepos) -> ModelPage:
    return ModelPage(page, own_toy.url).open()


def test_a_failed_download_leaves_the_present_model(models: ModelPage, repos: FakeRepos, own_toy: ToyStudio):
    models.look_up("me/unknown")
    expect(models.toast).to_contain_text("The Hub has no model me/unknown")
    models.look_up(TINY)
    expect(models.panel).to_contain_text("to download")
    models.panel.get_by_role("button", name="Cancel", exact=True).click()
    expect(models.panel).to_be_hidden()

    repos.cut = LAST
    models.look_up(TINY)
    models.load_button.click()
    expect(models.status).to_contain_text("complete files are kept", timeout=SLOW)
    expect(models.status).to_contain_text("still answers")
    models.set_length(4)
    assert models.ask_and_wait("Say 7")
    models.back_button.click()
    expect(models.page.locator(".status-ready")).to_contain_text("toy")
    expect(models.retry_button).to_be_hidden()
    assert own_toy.engine.status().model_id == str(own_toy.model)


def test_download_retry_and_chat(models: ModelPage, repos: FakeRepos, own_toy: ToyStudio):
    repos.cut = LAST
    models.look_up(TINY)
    for fact in ("to download", "free on the disk", "of memory needed", "of memory free", "licence", "mit",
                 "answers until this model is ready"):  # fmt: skip
        expect(models.panel).to_contain_text(fact)
    expect(models.load_button).to_have_text("Download and load")
    models.load_button.focus()
    models.page.keyboard.press("Enter")
    expect(models.retry_button).to_be_visible(timeout=SLOW)

    repos.heal()
    repos.gate.hold()
    models.retry_button.click()
    expect(models.cancel_button).to_be_visible(timeout=SLOW)
    expect(models.status).to_contain_text("still answers")
    repos.gate.allow()
    expect(models.page.locator(".status-ready")).to_contain_text(TINY, timeout=SLOW)
    expect(models.page.locator("#model input")).to_have_value(f"{TINY} · on the disk")
    expect(models.cancel_button).to_be_hidden()

    models.set_length(6)
    assert models.ask_and_wait("Say 7")
    rows = models.load_table()
    assert len(rows) == 4 and {len(row) for row in rows} == {16}, "4 layers, one router kind, 16 experts"
