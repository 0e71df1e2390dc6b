"""What axe-core finds on every tab, light and dark: nothing serious."""

from __future__ import annotations

from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.e2e.studio_page import Server, StudioPage

SERIOUS = ("serious", "critical")


def findings(page: Page) -> list[str]:
    found: list[dict[str, Any]] = Axe().run(page).response["violations"]
    return [
        f"{each['impact']} {each['id']}: {node['html'][:200]} | {node['failureSummary'][:300]}"
        for each in found
        if each["impact"] in SERIOUS
        for node in each["nodes"][:3]
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious_on_any_tab(page: Page, server: Server, theme):
    studio = StudioPage(page, server.url).open(f"?__theme={theme}")
    studio.set_length(6)
    studio.ask_and_wait("Hi")
    told = {"Chat": findings(page)}
    for tab in ("Classify", "Fine-tune"):
        page.locator("#tabs").get_by_role("tab", name=tab, exact=True).click()
        expect(page.locator("#classify-box" if tab == "Classify" else "#source")).to_be_visible()
        page.wait_for_timeout(500)  # transitions of colours
        told[tab] = findings(page)
    assert not any(told.values()), "\n".join(f"{tab}: {line}" for tab, lines in told.items() for line in lines)
