"""Two people with a browser each on one server: a run is its owner's alone, until they share it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.studio.ui.visitors import MARK, Studio, Visitor, two_visitors


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    with two_visitors(tmp_path_factory.mktemp("studio")) as made:
        yield made


def opened(browser: Browser, visitor: Visitor, run: str) -> Page:
    """The run's address, in a browser with the visitor's cookies."""
    context = browser.new_context()
    context.add_cookies([{"name": each.name, "value": each.value or "", "url": str(visitor.http.base_url)}
                         for each in visitor.http.cookies.jar])  # fmt: skip
    page = context.new_page()
    page.goto(f"{visitor.http.base_url}/?run={run}".replace("//?", "/?"))
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
