"""A visitor of a Space, in the Hub's frame, with a browser that refuses the storage of frames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, expect

from tests.builders.fake_hub import FakeHub
from tests.e2e.classify_page import ClassifyPage
from tests.e2e.finetune_page import FinetunePage
from tests.e2e.space.openid import NAME, TOKEN
from tests.e2e.space.surroundings import HUB, Space
from tests.e2e.studio_page import SLOW, StudioPage, settle, unfold

RELOADS = 4
SHORT = {"max_steps": 2, "batch_size": 1, "gradient_accumulation": 1, "max_length": 64, "eval_steps": 2,
         "save_steps": 2}  # fmt: skip


@pytest.fixture
def frame(blocking: BrowserContext, space: Space) -> Iterator[Any]:
    """The frame, which has the methods of a page."""
    page = blocking.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(space.frame)
    (inner,) = page.main_frame.child_frames
    expect(inner.locator(".status-ready")).to_be_visible(timeout=SLOW)
    settle(inner)
    yield inner
    page.close()
    assert not errors


def test_every_reload_shows_the_page(frame, space: Space):
    """Before, Gradio read the storage without a guard, and about half of the reloads stayed at "Loading…"."""
    assert frame.evaluate("window.isStorageRefused"), "this browser refuses no storage"
    for _ in range(RELOADS):
        frame.page.goto(space.frame)
        (inner,) = frame.page.main_frame.child_frames
        expect(inner.locator("#box textarea")).to_be_visible(timeout=SLOW)


def test_a_visitor_chats_classifies_and_tunes_within_the_limits(frame, space: Space):
    expect(frame.locator("#own-tab")).to_contain_text("the browser refuses storage")
    expect(frame.get_by_role("link", name="Open this studio in its own tab")).to_have_attribute("href", space.own)
    expect(frame.locator("#demo")).to_contain_text("This Space forgets runs when it sleeps")
    link = frame.get_by_role("link", name="Duplicate this Space")
    expect(link).to_have_attribute("href", "https://huggingface.co/spaces/me/studio?duplicate=true")

    chat = StudioPage(frame, "")
    chat.set_length(8)
    assert chat.ask_and_wait("Say 7")
    expect(chat.tokens.nth(7)).to_be_visible()

    frame.get_by_role("tab", name="Classify").click()
    classify = ClassifyPage(frame, "")
    settle(frame)
    classify.labels.fill("odd, even")
    classify.box.fill("7")
    frame.locator("#classify-go").click()
    expect(classify.result).to_contain_text("even", timeout=SLOW)

    frame.get_by_role("tab", name="Fine-tune").click()
    tuning = FinetunePage(frame, "")
    expect(tuning.command).not_to_have_value("", timeout=SLOW)
    settle(frame)
    unfold(frame, "All settings")
    tuning.set("max_steps", 500)
    tuning.start.click()
    expect(tuning.toast.first).to_contain_text("here a run is limited to max_steps from 1 to 60")
    tuning.begin(**SHORT)
    tuning.until_state("Done")


def visitor_of(browser: BrowserContext) -> str:
    """The visitor in the cookie of the Space's own tab."""
    cookies = [each for each in browser.cookies() if "jetmoe-studio-" in each["name"]]
    own = [each["value"] for each in cookies if each.get("partitionKey") != f"https://{HUB}"]
    return own[0].partition(".")[0]


def test_who_signs_in_on_its_own_tab_keeps_what_was_made_and_pushes_it(
    blocking: BrowserContext, space: Space, hub: FakeHub
):
    page = blocking.new_page()
    page.goto(space.own)
    run_id = space.trained(f"anon:{visitor_of(blocking)}")
    tuning = FinetunePage(page, space.own).open(f"?run={run_id}")
    tuning.until_state("Done")
    expect(page.locator("#own-tab")).to_be_hidden()
    page.get_by_role("button", name="Sign in with Hugging Face").click()
    expect(page.get_by_role("button", name=f"Sign out ({NAME})")).to_be_visible(timeout=SLOW)
    page.goto(f"{space.own}?run={run_id}")
    tuning.until_state("Done")
    page.locator("#make-export").click()
    expect(page.locator("#export-result a.dp-download")).to_be_visible(timeout=SLOW)
    unfold(page, "Push to the Hugging Face Hub")
    page.get_by_label("Repository").fill("pirate")
    page.get_by_role("button", name="Push adapter").click()
    expect(page.locator("#push-result a")).to_have_attribute("href", f"{hub.url}/{NAME}/pirate", timeout=SLOW)
    assert {*hub.files} == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert hub.given() == {f"Bearer {TOKEN}"}
    page.close()
