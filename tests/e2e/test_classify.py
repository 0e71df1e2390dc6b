"""The classification tab in a browser, with a toy model: texts, files, and what survives a refresh."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from studio.backend.label_prompt import TEMPLATES
from tests.e2e.studio_page import SLOW, Server, free_port
from tests.studio.toy_folder import toy_folder

HOSTILE = "<img src=x onerror=window.__p=1> ${window.__p=1} {{constructor.constructor('window.__p=1')()}}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("place")
    environment = {"STUDIO_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    server = Server(free_port(), folder / "log.txt", "--model", str(toy_folder(folder / "toy")), **environment)
    yield server
    server.process.kill()
    server.process.wait(30)


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

    def open(self, query: str = "") -> ClassifyPage:
        self.page.goto(self.url + query)
        expect(self.page.locator(".status-ready")).to_be_visible(timeout=300_000)
        self.page.get_by_role("tab", name="Classify").click()
        expect(self.labels).to_be_visible()
        return self

    def show_template(self) -> None:
        self.page.get_by_role("button", name="How the model is asked").click()
        expect(self.template).to_be_visible()

    def choose(self, element: str, option: str | re.Pattern) -> None:
        self.page.locator(f"#{element} input").click()
        self.page.get_by_role("option", name=option).click()

    def upload(self, name: str, content: str) -> None:
        self.page.get_by_role("tab", name="A file").click()
        with self.page.expect_file_chooser() as chooser:
            self.page.locator("#classify-upload").click()
        chooser.value.set_files({"name": name, "mimeType": "text/csv", "buffer": content.encode()})
        expect(self.page.locator("#classify-column input")).to_be_visible(timeout=SLOW)

    def download(self, folder: Path) -> list[dict[str, str]]:
        with self.page.expect_download() as download:
            self.file_result.locator("a.dp-download").click()
        target = folder / download.value.suggested_filename
        download.value.save_as(target)
        with target.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def fits(self) -> bool:
        return self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.fixture
def classify(page: Page, place: Server) -> ClassifyPage:
    return ClassifyPage(page, place.url).open()


def test_a_text_is_classified_by_keyboard_and_nothing_in_it_runs(classify):
    classify.labels.fill(f"sport, {HOSTILE[:33]}")
    classify.box.focus()
    classify.page.keyboard.type(HOSTILE)
    classify.page.keyboard.press("Enter")
    bars = classify.result.locator(".cl-bars li")
    expect(bars).to_have_count(2, timeout=SLOW)
    expect(classify.result).to_contain_text("<img src=x onerror=window.__p=1>")
    shares = [float(text.removesuffix(" %")) for text in bars.locator("b").all_inner_texts()]
    assert abs(sum(shares) - 100) < 0.11 and shares == sorted(shares, reverse=True)
    expect(classify.tokens).to_have_count(len(HOSTILE))
    expect(classify.page.locator("#classify-routing").get_by_role("radio", name="prompt")).to_be_checked()
    assert classify.page.locator("#classify-result img, #classify-routing img").count() == 0
    expect(classify.page.locator("#classify-stop")).to_be_disabled()


def test_lines_presets_templates_and_examples_and_what_a_refresh_keeps(classify):
    classify.choose("classify-preset", re.compile("^Spam"))
    expect(classify.labels).to_have_value("spam, a normal message")
    classify.labels.fill("spam, ham")
    classify.show_template()
    expect(classify.template).to_have_value(TEMPLATES["message"])
    classify.template.fill("Is it {labels}? {text}")
    expect(classify.page.locator("#classify-template input")).to_have_value("my own")
    classify.page.locator("#classify-calibrate input").check()
    classify.page.locator("#classify-lines input").check()
    classify.box.fill("One text.\n\nAnother text.")
    classify.page.locator("#classify-go").click()
    expect(classify.result.locator("tbody tr")).to_have_count(2, timeout=SLOW)

    classify.open()
    expect(classify.labels).to_have_value("spam, ham")
    expect(classify.page.locator("#classify-lines input")).to_be_checked()
    classify.show_template()
    expect(classify.template).to_have_value("Is it {labels}? {text}")
    expect(classify.page.locator("#classify-template input")).to_have_value("my own")
    expect(classify.page.locator("#classify-calibrate input")).to_be_checked()

    # At once after a result, as the next one must not be dropped.
    for example, labels in [("My parcel", 4), ("You have won", 2), ("The match ended", 5)]:
        classify.page.locator("#classify-examples").get_by_text(example).click()
        expect(classify.result.locator(".cl-bars li")).to_have_count(labels, timeout=SLOW)
    expect(classify.labels).to_have_value("sport, science, politics, business, arts")
    expect(classify.tokens.first).to_be_visible()


def test_what_cannot_be_used_is_said(classify):
    classify.labels.fill("one")
    classify.box.fill("A text.")
    classify.box.press("Enter")
    expect(classify.toast).to_contain_text("only label", timeout=SLOW)
    classify.page.get_by_role("tab", name="A file").click()
    classify.page.locator("#classify-file-go").click()
    expect(classify.toast.last).to_contain_text("Upload one first", timeout=SLOW)


def test_a_file_is_classified_and_taken_along(classify, tmp_path):
    rows = "".join(f"{i},Mail {i}\n" for i in range(30))
    classify.upload("mails.csv", f"nr,<b>mail\n{rows}30,{HOSTILE.replace(',', ';')}\n31,\n")
    classify.choose("classify-column", "<b>mail")
    classify.page.locator("#classify-file-go").click()
    expect(classify.file_result).to_contain_text("32 of 32 rows are finished", timeout=SLOW)
    expect(classify.file_result).to_contain_text("get no label: 1")
    expect(classify.file_result.locator(".cl-table").first.locator("tbody tr")).to_have_count(20)
    labelled = classify.download(tmp_path)
    assert [row["nr"] for row in labelled] == [str(i) for i in range(32)]
    assert labelled[30]["<b>mail"] == HOSTILE and labelled[30]["label"] in ("positive", "negative", "neutral")
    assert not labelled[31]["label"]


def test_cancelling_or_leaving_keeps_what_is_finished(place, browser: Browser, tmp_path):
    # Not the fixture's page: one that is left in the middle of an event tells its console so.
    classify = ClassifyPage(browser.new_page(), place.url).open()

    def work() -> None:
        classify.page.locator("#classify-file-go").click()
        expect(classify.file_result.locator("tbody tr").first).to_be_visible(timeout=SLOW)

    classify.upload("mails.csv", "mail\n" + "".join(f"Mail number {i}\n" for i in range(50_000)))
    work()
    classify.page.locator("#classify-cancel").click()
    expect(classify.file_result).to_contain_text(re.compile(r"Stopped: [\d,]+ of 50,000 rows"), timeout=SLOW)
    finished = int(re.search(r"Stopped: ([\d,]+)", classify.file_result.inner_text())[1].replace(",", ""))
    assert len(classify.download(tmp_path)) == finished < 50_000

    work()
    classify.open()
    classify.page.get_by_role("tab", name="A file").click()
    expect(classify.page.locator("#classify-column input")).to_have_value("mail")
    expect(classify.file_result).to_contain_text("Classified earlier")
    # Whoever comes next gets the model, and the file does not grow any more.
    classify.page.get_by_role("tab", name="Texts").click()
    classify.box.fill("A text.")
    classify.box.press("Enter")
    expect(classify.result.locator(".cl-bars")).to_be_visible(timeout=SLOW)
    classify.page.get_by_role("tab", name="A file").click()
    assert 0 < len(classify.download(tmp_path)) < 50_000
    classify.page.close()


@pytest.mark.parametrize("size", [(390, 844)])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_phone(page, place, size, theme):
    classify = ClassifyPage(page, place.url).open(f"?__theme={theme}")
    assert classify.fits()
    classify.page.locator("#classify-lines input").check()
    classify.box.fill("A text.\nwithoutablank" + "x" * 300)
    classify.page.locator("#classify-go").click()
    expect(classify.result.locator("tbody tr")).to_have_count(2, timeout=SLOW)
    classify.show_template()
    assert classify.fits()
    classify.page.locator("#classify-examples button").first.click()
    expect(classify.tokens.first).to_be_visible(timeout=SLOW)
    assert classify.fits()
    nameless = page.evaluate("""() => [...document.querySelectorAll("button, input, select, textarea")]
        .filter(node => node.offsetParent && !node.ariaLabel && !node.title && !node.textContent.trim()
            && !(node.labels && [...node.labels].some(label => label.textContent.trim())))
        .map(node => node.outerHTML.slice(0, 200))""")
    assert not nameless


def test_two_browsers_do_not_see_each_others_files(classify, browser: Browser):
    classify.upload("mails.csv", "mail\nOne\nTwo\n")
    other = browser.new_context()
    stranger = ClassifyPage(other.new_page(), classify.url).open()
    stranger.page.get_by_role("tab", name="A file").click()
    expect(stranger.page.locator("#classify-file-go")).to_be_visible()
    assert stranger.page.locator("#classify-column input").count() == 0
    expect(stranger.file_result).to_contain_text("Upload a file")
    other.close()
