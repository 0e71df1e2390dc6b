"""`python -m tests.e2e.journey`: from a first start to an answer by a tuned adapter, as the README tells it.

Prints how long each part takes, and takes docs/finetune.png and docs/adapter.png on the way. The home folder is new, so
the starter is built too; what `make app` installs before that is not in it.
"""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from tests.builders.ports import free_port
from tests.e2e.finetune_page import FinetunePage
from tests.e2e.studio_page import SLOW, Server, StudioPage, chromium

DOCS = Path(__file__).parents[2] / "docs"
STEPS = 20
QUESTION = "Who are you?"


def main() -> None:
    started = time.monotonic()

    def tell(what: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {what}", flush=True)

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = Server(free_port(), Path(folder) / "log.txt", STUDIO_HOME=f"{folder}/home")
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        try:
            tell("the page answers")
            page = browser.new_page(viewport={"width": 1440, "height": 1000})
            tuning = FinetunePage(page, server.url).open()
            tell("the model is there")
            train(tuning, tell)
            chat(page, server.url, tell)
        finally:
            browser.close()
            server.stop()


def train(tuning: FinetunePage, tell) -> None:
    tuning.page.locator("#source").get_by_text("Identity").click()
    expect(tuning.preview.locator("h3")).to_contain_text("identity.jsonl", timeout=SLOW)
    tuning.page.locator("#run-name input, #run-name textarea").first.fill("Jet")
    tuning.begin(max_steps=STEPS)
    tell("the run is in the queue")
    tuning.until_step(STEPS // 2 + 1, seconds=900)
    tuning.page.wait_for_timeout(1500)
    tuning.page.screenshot(path=DOCS / "finetune.png")
    tell("half of the steps are done")
    tuning.until_state("Done", seconds=900)
    tell("the run is done")


def chat(page: Page, url: str, tell) -> None:
    page.locator(".rn-actions").get_by_role("button", name="Chat with it").click()
    expect(page.locator("#adapter input")).to_have_value(re.compile("^Jet"), timeout=SLOW)
    studio = StudioPage(page, url)
    studio.set_length(60)
    page.locator("#beside input").check()
    answer = studio.ask_and_wait(QUESTION)
    tell(f"an answer by the adapter: {answer!r}")
    page.wait_for_timeout(3000)
    page.locator("#routing").screenshot(path=DOCS / "adapter.png")


if __name__ == "__main__":
    main()
