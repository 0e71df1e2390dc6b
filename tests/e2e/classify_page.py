"""The Classify tab as a person uses it: the page object that its tests drive."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from playwright.sync_api import Page, Response, expect

from tests.e2e.studio_page import SLOW, choose, settle, settle_to_leave, unfold


class ClassifyPage:
    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.labels = page.locator("#classify-labels textarea")
        self.template = page.locator("#classify-template-text textarea")
        self.box = page.locator("#classify-box textarea")
        self.result = page.locator("#classify-result")
        self.file_result = page.locator("#classify-file-result")
        self.tokens = page.locator("#classify-routing .rp-tok")
        self.toast = page.get_by_test_id("toast-body")
        self.quality = page.locator("#classify-quality")
        self.texts = self.quality.locator(".ev-report").first.locator("tr[data-place]:visible")

    def open(self, query: str = "") -> ClassifyPage:
        settle_to_leave(self.page)
        # What the browser kept of the form is drawn when it comes; what is typed before that is lost.
        with self.page.expect_response(_brings_the_form):
            self.page.goto(self.url + query)
        expect(self.page.locator(".status-ready")).to_be_visible(timeout=300_000)
        self.page.get_by_role("tab", name="Classify").click()
        expect(self.labels).to_be_visible()
        settle(self.page)
        return self

    def show_template(self) -> None:
        unfold(self.page, "Prompt template")
        expect(self.template).to_be_visible()

    def choose(self, element: str, option: str | re.Pattern) -> None:
        choose(self.page, element, option)

    def upload(self, name: str, content: str) -> None:
        self.page.get_by_role("tab", name="File", exact=True).click()
        with self.page.expect_file_chooser() as chooser:
            self.page.locator("#classify-upload").click()
        chooser.value.set_files({"name": name, "mimeType": "text/csv", "buffer": content.encode()})
        expect(self.page.locator("#classify-column input")).to_be_visible(timeout=SLOW)

    def show_quality(self) -> None:
        self.page.get_by_role("tab", name="Evaluation", exact=True).click()

    def nameless(self) -> list[str]:
        """What can be used and has no name."""
        return self.page.evaluate("""() => [...document.querySelectorAll("button, input, select, textarea")]
            .filter(node => node.offsetParent && !node.ariaLabel && !node.title && !node.textContent.trim()
                && !(node.labels && [...node.labels].some(label => label.textContent.trim())))
            .map(node => node.outerHTML.slice(0, 200))""")

    def download(self, folder: Path) -> list[dict[str, str]]:
        with self.page.expect_download() as download:
            self.file_result.locator("a.dp-download").click()
        target = folder / download.value.suggested_filename
        download.value.save_as(target)
        with target.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def fits(self) -> bool:
        return self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def _brings_the_form(response: Response) -> bool:
    if "/run/predict" not in response.url:
        return False
    first, *others = response.request.post_data_json["data"] or [None]
    return len(others) == 1 and isinstance(first, dict) and (not first or "one_a_line" in first)
