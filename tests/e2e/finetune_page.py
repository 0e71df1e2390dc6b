"""The fine-tune tab as a person uses it: the page object that its tests drive."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

from tests.e2e.studio_page import SLOW, choose, settle, settle_to_leave, unfold


class FinetunePage:
    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.preview = page.locator("#data-preview")
        self.audit = page.locator("#audit")
        self.start = page.locator("#start")
        self.command = page.locator("#command textarea")
        self.run = page.locator(".rn-run")
        self.rows = page.locator(".rn-row")
        self.toast = page.get_by_test_id("toast-body")

    def open(self, query: str = "") -> FinetunePage:
        settle_to_leave(self.page)
        self.page.goto(self.url + query)
        expect(self.page.locator(".status-ready")).to_be_visible(timeout=300_000)
        if not query:
            self.page.get_by_role("tab", name="Fine-tune").click()
            expect(self.preview.locator("h3, .dp-problem, .dp-empty").first).to_be_visible(timeout=SLOW)
            expect(self.preview).not_to_contain_text("Reading …", timeout=SLOW)
            expect(self.command).not_to_have_value("", timeout=SLOW)
            settle(self.page)
        return self

    def show_runs(self) -> None:
        self.page.get_by_role("tab", name="Runs").click()

    def show_new(self) -> None:
        self.page.get_by_role("tab", name="New run").click()

    def upload(self, name: str, content: bytes) -> None:
        with self.page.expect_file_chooser() as chooser:
            self.page.locator("#upload").click()
        chooser.value.set_files({"name": name, "mimeType": "text/plain", "buffer": content})

    def set(self, name: str, value: object) -> None:
        """Types into a number or text of the form, and leaves it."""
        field = self.page.locator(f"#recipe-{name} input, #recipe-{name} textarea").first
        field.fill(str(value))
        field.press("Tab")

    def choose(self, element: str, option: str) -> None:
        choose(self.page, element, option, exact=True)

    def begin(self, **settings: object) -> str:
        """Starts a run with these settings; returns its id, which the address then has."""
        if settings and not self.page.locator("#recipe-log_steps").is_visible():
            unfold(self.page, "All settings")
        for name, value in settings.items():
            self.set(name, value)
        before = self.page.url
        self.start.click()
        self.page.wait_for_url(lambda url: url != before and "run=" in url, timeout=SLOW)
        expect(self.run).to_be_visible(timeout=SLOW)
        return self.page.url.rpartition("run=")[2][:36]

    def until_state(self, word: str, seconds: int = 180) -> None:
        state = self.run.locator(".rn-state")
        expect(state).to_contain_text(re.compile(f"{word}|Failed"), timeout=1000 * seconds)
        assert word in state.inner_text(), self.run.locator(".rn-message").inner_text()

    def step(self) -> int:
        text = self.figure("Step").inner_text()
        return int(re.match(r"[\d,]+", text)[0].replace(",", ""))  # type: ignore[index]

    def until_step(self, step: int, seconds: int = 180) -> None:
        self.page.wait_for_function(
            """step => [...document.querySelectorAll(".rn-figures div")].some(({ firstChild, lastChild }) =>
                 firstChild.textContent === "Step" && parseInt(lastChild.textContent.replace(",", "")) >= step)""",
            arg=step,
            timeout=1000 * seconds,
        )

    def figure(self, name: str) -> Locator:
        return self.run.locator(".rn-figures div").filter(has_text=name).locator("dd").first

    def act(self, button: str) -> None:
        self.run.locator(".rn-actions").get_by_role("button", name=button).click()

    def export(self, title: str, folder: Path) -> Path:
        self.page.locator("#export-kind").get_by_text(title, exact=True).click()
        self.page.locator("#make-export").click()
        link = self.page.locator("#export-result a.dp-download").filter(has_text=title)
        expect(link).to_be_visible(timeout=3 * SLOW)
        with self.page.expect_download() as download:
            link.click()
        target = folder / download.value.suggested_filename
        download.value.save_as(target)
        return target
