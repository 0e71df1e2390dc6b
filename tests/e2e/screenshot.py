"""`python -m tests.e2e.screenshot [chat|classify]` takes docs/chat.png and docs/classify.png from the running app."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from tests.builders.ports import free_port
from tests.e2e.classify_page import ClassifyPage
from tests.e2e.studio_page import SLOW, Server, StudioPage, chromium

DOCS = Path(__file__).parents[2] / "docs"
QUESTION = "Write a Python function that checks whether a number is prime."
NEWS = {
    "sport": (
        "The match ended in a draw after a late penalty.", "She won the marathon in just over two hours.",
        "The coach left out his best striker for the final.", "Rain stopped play on the third day of the test.",
        "The cyclist lost his lead on the last climb.", "Their goalkeeper saved three shots in a row.",
    ),
    "science": (
        "The telescope found water vapour on a distant planet.", "A new vaccine protects mice against malaria.",
        "Researchers counted the neurons of a fruit fly.", "The fossil is older than any bird known before.",
        "Physicists measured the mass of the neutrino again.", "The probe will land on the moon of Saturn.",
    ),
    "business": (
        "Shares of the airline fell after a profit warning.", "The bank raised its interest rates by half a point.",
        "The carmaker will close two of its factories.", "Sales of the shop chain grew by a fifth last year.",
        "The start-up was bought for two billion dollars.", "Oil prices rose as stocks ran low.",
    ),
    "politics": (
        "Parliament voted against the new tax law.", "The minister resigned after the scandal.",
        "Voters go to the polls in six states on Sunday.", "The president vetoed the bill a second time.",
        "The two parties agreed on a coalition.", "The mayor promised to build more homes before the election.",
    ),
}  # fmt: skip


def chat(page: Page, url: str) -> None:
    studio = StudioPage(page, url).open()
    studio.set_length(160)
    studio.ask_and_wait(QUESTION)
    page.locator("#advanced").get_by_role("button").first.click()
    page.evaluate("scrollTo(0, 0)")


def classify(page: Page, url: str) -> None:
    """What the starter takes for what, without training."""
    rows = "".join(f'"{text}",{label}\n' for label, texts in NEWS.items() for text in texts)
    tab = ClassifyPage(page, url).open()
    tab.labels.fill(", ".join(NEWS))
    tab.show_template()
    tab.choose("classify-template", "topic")
    tab.upload("news.csv", f"text,topic\n{rows}")
    tab.choose("classify-true-column", "topic")
    page.locator("#classify-file-go").click()
    expect(tab.file_result).to_contain_text("rows with a true label", timeout=5 * SLOW)
    tab.show_quality()
    tab.quality.locator("h3").first.scroll_into_view_if_needed()


PICTURES: dict[str, Callable[[Page, str], None]] = {"chat": chat, "classify": classify}


def main(names: list[str]) -> None:
    DOCS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = Server(free_port(), Path(folder) / "log.txt")
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        try:
            for name in names or PICTURES:
                page = browser.new_page(viewport={"width": 1440, "height": 900})
                PICTURES[name](page, server.url)
                page.evaluate("document.activeElement.blur()")
                page.wait_for_timeout(1500)
                page.screenshot(path=DOCS / f"{name}.png")
        finally:
            browser.close()
            server.stop()


if __name__ == "__main__":
    main(sys.argv[1:])
