"""Two people with a browser each on one server: a run is its owner's alone, until they share it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.builders.visitors import MARK, Studio, Visitor, two_visitors


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    with two_visitors(tmp_path_factory.mktemp("studio")) as made:
        yield made


def opened(browser: Browser, visitor: Visitor, run: str) -> Page:
    """The run's address, or with no run the studio's, in a browser with the visitor's cookies."""
    context = browser.new_context()
    context.add_cookies([{"name": each.name, "value": each.value or "", "url": str(visitor.http.base_url)}
                         for each in visitor.http.cookies.jar])  # fmt: skip
    page = context.new_page()
    page.goto(f"{visitor.http.base_url}/?run={run}".replace("//?", "/?").removesuffix("?run="))
    return page


def test_a_run_is_shared_by_a_button_and_only_to_be_looked_at(studio, browser):
    ada, bob = (opened(browser, visitor, studio.things.run) for visitor in (studio.ada, studio.bob))
    expect(ada.locator(".rn-run h3")).to_have_text(f"{MARK} 0")
    expect(ada.locator(".rn-items li")).to_have_count(2)
    expect(bob.get_by_text("There is no such run")).to_be_visible()
    ada.get_by_role("button", name="Share", exact=True).click()
    expect(ada.get_by_role("button", name="Stop sharing")).to_be_visible()
    bob.reload()
    expect(bob.locator(".rn-run h3")).to_have_text(f"{MARK} 0")
    expect(bob.locator(".rn-run .rn-actions button:visible")).to_have_count(0)
    expect(bob.locator(".rn-items li")).to_have_count(0)
    expect(bob.locator("#export-box")).not_to_be_visible()
    ada.get_by_role("button", name="Stop sharing").click()
    expect(ada.get_by_role("button", name="Share", exact=True)).to_be_visible()
    bob.reload()
    expect(bob.get_by_text("There is no such run")).to_be_visible()
    for page in (ada, bob):
        page.context.close()


def test_a_run_is_started_and_cancelled_by_keyboard_alone(studio, browser):
    page = opened(browser, studio.ada, "")
    expect(page.locator(".status-ready")).to_be_visible()
    press(page, "#tabs [role=tab][aria-selected=false]", "Fine-tune")
    expect(page.locator("#command textarea")).to_have_value(re.compile("^python -m studio train"))
    press(page, "#start")
    expect(page.locator(".rn-run .rn-state")).to_have_text("Queued")  # behind the one that is running
    press(page, ".rn-actions button", "Cancel")
    expect(page.locator(".rn-run .rn-state")).to_have_text("Cancelled")
    reach(page, ".rn-row")
    before = page.evaluate("document.activeElement.outerHTML")
    for _ in range(2):
        page.wait_for_event("response", lambda response: "/watch/" in response.url)
    assert page.evaluate("document.activeElement.outerHTML") == before, "polls leave the focus where it is"
    page.context.close()


def press(page: Page, selector: str, text: str = "") -> None:
    reach(page, selector, text)
    page.keyboard.press("Enter")


def reach(page: Page, selector: str, text: str = "") -> None:
    for _ in range(200):
        page.keyboard.press("Tab")
        if page.evaluate(
            "([selector, text]) => document.activeElement.matches(selector)"
            " && document.activeElement.textContent.includes(text)", [selector, text]
        ):  # fmt: skip
            return
    raise AssertionError(f"the keyboard does not reach {selector}")
