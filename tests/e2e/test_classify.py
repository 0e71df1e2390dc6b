"""The classification tab in a browser, with a toy model: texts, files, and what survives a refresh."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser, Page, expect

from studio.backend.classification.label_prompt import TEMPLATES
from studio.backend.recipe import Recipe
from studio.backend.training import run as train
from tests.builders.served import ToyStudio
from tests.builders.toy_labels import classifier_settings
from tests.e2e.classify_page import ClassifyPage
from tests.e2e.studio_page import SLOW

TRAINED = "ham or spam"
HOSTILE = "<img src=x onerror=window.__p=1> ${window.__p=1} {{constructor.constructor('window.__p=1')()}}"


@pytest.fixture(scope="module")
def place(toy: ToyStudio, tmp_path_factory: pytest.TempPathFactory) -> ToyStudio:
    """The toy with a classifier that was trained on it."""
    settings = classifier_settings(tmp_path_factory.mktemp("data"), toy.model)
    train.start(Recipe.from_settings(settings), TRAINED)
    return toy


@pytest.fixture
def classify(page: Page, place: ToyStudio) -> ClassifyPage:
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
    classify.choose("classify-preset", re.compile("^Language"))
    expect(classify.labels).to_have_value("English, French, Spanish, German")
    classify.labels.fill("spam, ham")
    classify.show_template()
    expect(classify.template).to_have_value(TEMPLATES["topic"])
    classify.template.fill("Is it {labels}? {text}")
    expect(classify.page.locator("#classify-template input")).to_have_value("custom")
    classify.page.locator("#classify-calibrate input").uncheck()
    classify.page.locator("#classify-lines input").check()
    classify.box.fill("One text.\n\nAnother text.")
    classify.page.locator("#classify-go").click()
    expect(classify.result.locator("tbody tr")).to_have_count(2, timeout=SLOW)

    classify.open()
    expect(classify.labels).to_have_value("spam, ham")
    expect(classify.page.locator("#classify-lines input")).to_be_checked()
    classify.show_template()
    expect(classify.template).to_have_value("Is it {labels}? {text}")
    expect(classify.page.locator("#classify-template input")).to_have_value("custom")
    expect(classify.page.locator("#classify-calibrate input")).not_to_be_checked()

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
    classify.page.get_by_role("tab", name="File", exact=True).click()
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
        expect(classify.file_result).not_to_contain_text("Stopped", timeout=SLOW)  # of the one before
        expect(classify.file_result.locator("tbody tr").first).to_be_visible(timeout=SLOW)

    classify.upload("mails.csv", "mail\n" + "".join(f"Mail number {i}\n" for i in range(50_000)))
    work()
    classify.page.locator("#classify-cancel").click()
    expect(classify.file_result).to_contain_text(re.compile(r"Stopped: [\d,]+ of 50,000 rows"), timeout=SLOW)
    finished = int(re.search(r"Stopped: ([\d,]+)", classify.file_result.inner_text())[1].replace(",", ""))
    assert len(classify.download(tmp_path)) == finished < 50_000

    work()
    classify.open()
    classify.page.get_by_role("tab", name="File", exact=True).click()
    expect(classify.page.locator("#classify-column input")).to_have_value("mail")
    expect(classify.file_result).to_contain_text("Classified earlier")
    # Whoever comes next gets the model, and the file does not grow any more.
    classify.page.get_by_role("tab", name="Texts").click()
    classify.box.fill("A text.")
    classify.box.press("Enter")
    expect(classify.result.locator(".cl-bars")).to_be_visible(timeout=SLOW)
    classify.page.get_by_role("tab", name="File", exact=True).click()
    assert 0 < len(classify.download(tmp_path)) < 50_000
    classify.page.close()


@pytest.mark.parametrize(("size", "theme"), [((390, 844), "dark")])
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
    assert not classify.nameless()


def test_two_browsers_do_not_see_each_others_files(classify, browser: Browser):
    classify.upload("mails.csv", "mail\nOne\nTwo\n")
    other = browser.new_context()
    stranger = ClassifyPage(other.new_page(), classify.url).open()
    stranger.page.get_by_role("tab", name="File", exact=True).click()
    expect(stranger.page.locator("#classify-file-go")).to_be_visible()
    assert stranger.page.locator("#classify-column input").count() == 0
    expect(stranger.file_result).to_contain_text("Upload a file")
    other.close()


def test_a_file_with_true_labels_tells_how_good_the_model_is(classify):
    classify.labels.fill("sport, science")
    rows = "".join(f"{HOSTILE.replace(',', ';')} {i},{['sport', 'science'][i % 2]}\n" for i in range(30))
    classify.upload("mails.csv", f"mail,kind\n{rows}")
    expect(classify.page.locator("#classify-true-column input")).to_have_value("none")
    classify.choose("classify-column", "mail")
    classify.choose("classify-true-column", "kind")
    classify.page.locator("#classify-file-go").click()
    expect(classify.file_result).to_contain_text(
        re.compile(r"Correct for [\d.]+ % of 30 rows with a true label"), timeout=SLOW
    )

    classify.show_quality()
    expect(classify.quality).to_contain_text("measured on 30 rows of mails.csv")
    plots_equal_their_tables(classify, 1)
    cells = classify.quality.locator(".ev-matrix button")
    assert sum(int(text) for text in cells.all_inner_texts()) == 30
    for number in range(cells.count()):
        cell = cells.nth(number)
        cell.focus()
        classify.page.keyboard.press("Enter")
        expect(cell).to_have_attribute("aria-pressed", "true")
        expect(classify.texts).to_have_count(int(cell.inner_text()))
        expect(classify.quality.locator(".ev-shown")).to_have_text(f"{cell.get_attribute('aria-label')}.")
        true, found = re.fullmatch(r"True (\w+), predicted (\w+): .*", cell.get_attribute("aria-label")).groups()
        assert classify.texts.first.locator("td").all_inner_texts()[1:3] == [true, found]
    expect(classify.quality.locator("button[aria-pressed=true]")).to_have_count(1)
    classify.quality.get_by_role("button", name="All texts").click()
    expect(classify.texts).to_have_count(30)
    expect(classify.texts.first).to_contain_text("<img src=x onerror=window.__p=1>")
    assert classify.quality.locator("img").count() == 0

    classify.choose("classify-by", re.compile(TRAINED))
    expect(classify.quality).to_contain_text("held-out rows of rows.jsonl", timeout=SLOW)
    expect(classify.quality).not_to_contain_text("mails.csv")
    plots_equal_their_tables(classify, 1)


def plots_equal_their_tables(classify: ClassifyPage, count: int) -> None:
    """Of each report, also where it is collapsed."""
    parts = classify.quality.locator(".ev-calibration")
    expect(parts).to_have_count(count)
    for part in parts.all():
        rows = part.locator("tbody").evaluate("b => [...b.rows].map(r => [...r.cells].map(c => c.textContent))")
        expect(part.locator("circle")).to_have_count(len(rows))
        drawn = part.locator("circle title").all_text_contents()
        assert drawn == [f"{size} at {confidence}: {accuracy}" for _, size, confidence, accuracy in rows]


def test_a_trained_classifier_is_compared_with_its_training(classify):
    classify.choose("classify-by", re.compile(TRAINED))
    rows = "".join(
        f"{i} {text},{label}\n" for i in range(8) for text, label in (("tea walk", "ham"), ("buy cash", "spam"))
    )
    classify.upload("mails.csv", f"mail,kind\n{rows}")
    classify.choose("classify-column", "mail")
    classify.choose("classify-true-column", "kind")
    classify.page.locator("#classify-file-go").click()
    expect(classify.file_result).to_contain_text("16 rows with a true label", timeout=SLOW)
    classify.show_quality()
    expect(classify.quality.locator("details.ev-beside")).to_have_count(1)
    plots_equal_their_tables(classify, 2)
    classify.quality.locator(".ev-beside > summary").click()
    expect(classify.quality.locator(".ev-beside .ev-plot svg")).to_be_visible()


def test_a_file_is_trained_on_from_here(classify):
    classify.upload("mails.csv", "text,label\n" + "".join(f"Mail {i},{'ab'[i % 2]}\n" for i in range(30)))
    expect(classify.page.locator("#classify-true-column input")).to_have_value("label")
    classify.page.locator("#classify-train").click()
    preview = classify.page.locator("#data-preview")
    expect(preview).to_contain_text("mails.csv", timeout=SLOW)
    expect(preview).to_contain_text("read as labelled")
    expect(classify.page.locator("#column-label input")).to_have_value("label")
    expect(classify.page.locator("#bundled input")).to_have_value("starter/classify_quick")
    expect(classify.page.locator("#command textarea")).to_have_value(re.compile("data=mails.csv"))


@pytest.mark.parametrize(("size", "theme"), [((390, 844), "light")])
def test_how_good_a_trained_classifier_is_fits_a_phone(page, place, size, theme):
    classify = ClassifyPage(page, place.url).open(f"?__theme={theme}")
    classify.show_quality()
    expect(classify.quality).to_contain_text("There is no evaluation yet")
    classify.choose("classify-by", re.compile(TRAINED))
    expect(classify.quality.locator("h3").first).to_contain_text(TRAINED, timeout=SLOW)
    for title in ("Confusion matrix", "Metrics by label", "Calibration", "Experts by label"):
        expect(classify.quality.get_by_role("heading", name=re.compile(f"^{re.escape(title)}"))).to_be_visible()
    for summary in classify.quality.locator("details:not([open]) > summary").all():
        summary.click()
    assert classify.fits() and not classify.nameless()
    # A trained classifier shows the routing of a text, too.
    classify.page.get_by_role("tab", name="Texts").click()
    classify.box.fill("buy cash")
    classify.box.press("Enter")
    expect(classify.tokens).to_have_count(len("buy cash"), timeout=SLOW)


def test_a_finished_run_leads_to_its_classifier(classify):
    page = classify.page
    page.get_by_role("tab", name="Fine-tune").click()
    page.get_by_role("tab", name="Runs").click()
    page.locator("#runs").get_by_text(TRAINED).first.click()
    expect(page.locator(".rn-actions").get_by_role("button", name="Chat with it")).to_have_count(0)
    page.locator(".rn-actions").get_by_role("button", name="Classify with it").click()
    expect(page.locator("#classify-by input")).to_have_value(re.compile(TRAINED), timeout=SLOW)
    expect(classify.result).to_be_visible()
    expect(page.locator("#classify-learned")).to_contain_text("set when it was trained")
    expect(classify.labels).to_be_hidden()
    classify.show_quality()
    expect(classify.quality.locator("h3").first).to_contain_text(TRAINED)
    expect(page).not_to_have_url(re.compile("classifier="))
