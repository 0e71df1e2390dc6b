"""The studio in a browser as a person uses it: a server process, and the page object that the tests drive."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from playwright.sync_api import Error, Locator, Page, expect

from tests.builders.gate import Gate
from tests.builders.served import Steps
from tests.builders.waiting import until

ROOT = Path(__file__).parents[2]
SLOW = 60_000
"""Milliseconds for what waits on the model, on a busy machine."""


def chromium(*names: str) -> str:
    """The browser: `$CHROMIUM`, else the first of `names` on the PATH. The one without a window opens pages faster."""
    names = names or ("chromium-headless-shell", "chromium")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if not found:
        raise RuntimeError(f"There is no browser: `apt-get install {names[0]}`, or name one in $CHROMIUM.")
    return found


class Server:
    """`app.py` in a process of its own, with these flags and variables of the environment."""

    script = ("-m", "tests.e2e.eager_app")

    def __init__(self, port: int, log: Path, *flags: str, **environment: str) -> None:
        self.port = port
        self.log = log
        self.url = f"http://127.0.0.1:{port}/"
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *self.script, "--port", str(port), *flags],
                cwd=ROOT,
                env=os.environ | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        until(self._answers, 120)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            with urllib.request.urlopen(self.url, timeout=5):
                return True
        except OSError:
            return False

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def shown_token(text: str) -> str:
    """What the strip shows of a token, as `tokenText` in `ui/routing/panel/token_text.js`: whitespace is visible, and
    no mark joins the token before."""
    if not text:
        return "⋯"
    marks = {" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍"}
    shown = ("◌" if unicodedata.category(text[0])[0] == "M" else "") + text
    blank = " \n\t\r\v\f\xa0\ufeff"
    parts = re.split(r"([ \n\t\r]+)", shown)
    return "".join(part if part.strip(blank) else "".join(marks.get(sign, "·") for sign in part) for part in parts)


def settle(page: Page, most_ms: int = 5000) -> None:
    """Waits until nothing has changed for 150 ms: what was just opened is drawn part by part, and what is typed before
    that is lost. A page that never rests is waited for so long."""
    page.evaluate(
        """(most) => new Promise((done) => {
      let timer;
      const end = () => { watcher.disconnect(); requestAnimationFrame(done); };
      const wait = () => { clearTimeout(timer); timer = setTimeout(end, 150); };
      const watcher = new MutationObserver(wait);
      watcher.observe(document.body, { subtree: true, childList: true, attributes: true });
      setTimeout(end, most);
      wait();
    })""",
        most_ms,
    )


def unfold(page: Page, name: str) -> None:
    """Opens an accordion, and waits until Gradio has drawn what is in it and set its values."""
    page.get_by_role("button", name=name).click()
    settle(page)


def settle_to_leave(page: Page) -> None:
    """A page that is left in the middle of an event tells its console so."""
    with suppress(Error):  # it is leaving by itself, as where its server is back
        settle(page, most_ms=1000)


def choose(page: Page, element: str, option: str | re.Pattern[str], exact: bool = False) -> None:
    """Pick an option of a dropdown, and wait until its list is closed: the next list may have the same options."""
    page.locator(f"#{element} input").click()
    offered = page.get_by_test_id("dropdown-option")
    offered.and_(page.get_by_role("option", name=option, exact=exact)).click()
    expect(offered).to_have_count(0)


def finish_transitions(page: Page) -> None:
    """Waits until colours that are changing have their last value."""
    page.evaluate("""() => Promise.allSettled(
        document.getAnimations().filter((each) => each instanceof CSSTransition).map((each) => each.finished))""")


class StudioPage:
    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.box = page.locator("#box textarea")
        self.send = page.locator("#box .submit-button")
        self.stop = page.locator("#box .stop-button")
        self.answers = page.locator("#chat .bot.message")
        self.questions = page.locator("#chat .user.message")
        self.figures = page.locator("#stats .figures")
        self.tokens = page.locator("#routing .rp-answer-tokens .rp-tok")
        self.toast = page.get_by_test_id("toast-body")

    def open(self, query: str = "") -> StudioPage:
        settle_to_leave(self.page)
        self.page.goto(self.url + query)
        expect(self.page.locator(".status-ready")).to_be_visible(timeout=300_000)
        return self

    def set_length(self, tokens: int) -> None:
        self._advanced()
        field = self.page.locator("#set-max_new_tokens input[type=number]")
        field.fill(str(tokens))
        field.press("Tab")

    def _advanced(self) -> None:
        if not self.page.locator("#system textarea").is_visible():
            unfold(self.page, "Advanced")
        expect(self.page.locator("#system textarea")).to_be_visible()

    def ask(self, text: str) -> None:
        # The figures of the previous answer, and Send, may stay for a moment after the new question is shown.
        self.figures.evaluate_all("all => all.forEach(each => each.dataset.previous = '')")
        self.box.fill(text)
        self.send.click()

    def ask_and_wait(self, text: str) -> str:
        before = self.answers.count()
        self.ask(text)
        expect(self.answers).to_have_count(before + 1, timeout=SLOW)
        return self.wait()

    def retry(self, steps: Steps) -> str:
        """Asks the last question again; returns the new answer once it is complete."""
        steps.hold()  # so that it is seen at work
        self.page.locator("#chat").get_by_label("retry").first.click()
        expect(self.stop).to_be_visible()
        steps.allow()
        return self.wait()

    def wait(self) -> str:
        """Until the answer is complete; returns its text."""
        expect(self.page.locator("#stats .figures:not([data-previous])")).to_be_visible(timeout=SLOW)
        expect(self.send).to_be_visible()
        settle(self.page)  # Gradio closes its stream of events; a click at this moment is answered with the next event
        return self.answers.last.inner_text()

    def let_through(self, steps: Steps, tokens: int) -> int:
        """Lets held steps happen until the page shows that many tokens of the answer; returns how many it shows."""
        for _ in range(1000):
            if (shown := self.tokens.count()) >= tokens:
                return shown
            steps.allow(1)
        raise AssertionError(f"the page never shows {tokens} tokens")

    def wait_until_stopped(self, steps: Gate) -> str:
        """Lets held steps happen one by one, so that the answer doesn't end before the server is told to stop."""
        for _ in range(1000):
            if self.send.is_visible():
                break
            steps.allow(1)
        steps.allow()
        return self.wait()

    def shown_tokens(self) -> int:
        return int(self.page.locator(".rp-root").get_attribute("data-tokens") or 0)

    def export(self) -> dict[str, Any]:
        with self.page.expect_download(timeout=SLOW) as download:
            self.page.locator("#export").click()
        return json.loads(Path(download.value.path()).read_text(encoding="utf-8"))

    def load(self, document: dict[str, Any] | bytes) -> None:
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        upload = {"name": "conversation.json", "mimeType": "application/json", "buffer": data}
        with self.page.expect_file_chooser() as chooser:
            self.page.locator("#import").click()
        chooser.value.set_files(upload)  # type: ignore[arg-type]

    def load_table(self) -> list[list[float]]:
        """The table twin of the map: one row a layer, all units of MoA, then all of MoE."""
        details = self.page.locator("details.rp-load")
        if details.get_attribute("open") is None:
            details.locator("summary").click()
        expect(details.locator("tbody tr").first).to_be_visible()
        return details.locator("tbody").evaluate(
            "body => [...body.rows].map(row => [...row.cells].slice(1).map(cell => Number(cell.textContent)))"
        )

    def set_layer(self, layer: int) -> None:
        self.page.get_by_role("slider", name="Layer").fill(str(layer))

    def kind(self, name: str) -> Locator:
        name = {"MoA": "Attention experts", "MoE": "Feed-forward experts"}[name]
        return self.page.locator("#routing").get_by_role("radio", name=name, exact=True)
