"""`python -m tests.e2e.screenshot` takes docs/chat.png from the running app."""

from __future__ import annotations

import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.e2e.studio_page import Server, StudioPage, chromium, free_port

TARGET = Path(__file__).parents[2] / "docs" / "chat.png"
QUESTION = "Write a Python function that checks whether a number is prime."


def main() -> None:
    TARGET.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = Server(free_port(), Path(folder) / "log.txt")
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        try:
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            studio = StudioPage(page, server.url).open()
            studio.set_length(160)
            studio.ask_and_wait(QUESTION)
            page.evaluate("document.activeElement.blur()")
            page.wait_for_timeout(1500)
            page.screenshot(path=TARGET)
        finally:
            browser.close()
            server.stop()


if __name__ == "__main__":
    main()
