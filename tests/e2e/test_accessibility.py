"""Every tab, light and dark: axe-core finds nothing serious, and what it can't judge is legible."""

from __future__ import annotations

import re
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, expect

from tests.builders.contrast import contrast
from tests.builders.served import ToyStudio
from tests.e2e.studio_page import StudioPage, finish_transitions

SERIOUS = ("serious", "critical")
COLOURS = """(element, part) => {
  let ground = element;
  while (getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
  return [getComputedStyle(element, part).color, getComputedStyle(ground).backgroundColor];
}"""


def findings(page: Page) -> list[str]:
    found: list[dict[str, Any]] = Axe().run(page).response["violations"]
    return [
        f"{each['impact']} {each['id']}: {node['html'][:200]} | {node['failureSummary'][:300]}"
        for each in found
        if each["impact"] in SERIOUS
        for node in each["nodes"][:3]
    ]


def shown_contrast(element: Locator, part: str | None = None) -> float:
    """Of an element's text, or of a part of it such as its placeholder, on what is behind it."""
    colours = element.evaluate(COLOURS, part)
    return contrast(*(map(int, re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", each).groups()) for each in colours))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_is_illegible_or_nameless_on_any_tab(page: Page, toy: ToyStudio, theme):
    """By axe, and by counting where it can't judge: a chosen tab, for the line that is drawn under it, and what stands
    in an empty field."""
    studio = StudioPage(page, toy.url).open(f"?__theme={theme}")
    studio.set_length(6)
    studio.ask_and_wait("Hi")
    told = {}
    for name, shows in (("Chat", "#box"), ("Classify", "#classify-box"), ("Fine-tune", "#source")):
        tab = page.locator("#tabs").get_by_role("tab", name=name, exact=True)
        tab.click()
        expect(tab).to_have_attribute("aria-selected", "true")
        expect(page.locator(shows)).to_be_visible()
        finish_transitions(page)
        told[name] = findings(page)
        assert shown_contrast(tab) >= 4.5
        for field in page.locator("[placeholder]:visible").all():
            assert shown_contrast(field, "::placeholder") >= 4.5
    assert not any(told.values()), "\n".join(f"{tab}: {line}" for tab, lines in told.items() for line in lines)
