"""Text that tries to run or to load, as every name, cell, label, prompt and message that a tab shows."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from studio.backend.adapters.uploads import import_adapter
from studio.backend.recipe import Recipe
from studio.backend.training import run as train
from studio.ui.server.cookies import Visitors
from studio.ui.server.identity import secret
from tests.builders.adapters import make_adapter
from tests.builders.hostile import PAYLOADS
from tests.builders.toy_labels import classifier_settings, labelled_file
from tests.builders.toy_runs import toy_run
from tests.builders.visitors import Studio, Visitor, two_visitors
from tests.e2e.classify_page import ClassifyPage
from tests.e2e.finetune_page import FinetunePage
from tests.e2e.studio_page import SLOW, StudioPage, choose, unfold

# As long as a name may be, and without the slashes that none has.
NAME = "<img src=x onerror=window.__p=1>${window.__p=1}{{__p=1}}<svg onload=__p=1>"
LABELS = ("<img src=x onerror=window.__p=1>", "${window.__p=1} <svg onload=window.__p=1>")
ALL = " ".join(each.replace("\n", " ") for each in PAYLOADS)
HARM = "[onerror], [onload], iframe[srcdoc], img[src='x'], img[src*='leak'], a[href^='javascript']"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """Ada has runs, a classifier and an adapter with such names, and Bob looks at the run that she shares."""
    folder = tmp_path_factory.mktemp("sinks")
    with two_visitors(folder) as studio:
        owner, _ = Visitors(secret(studio.jobs.store.home)).recognise(dict(studio.ada.http.cookies))
        _adapter(folder, owner)
        _classifier(folder, studio, owner)
        _run(studio, owner)
        yield studio


def _adapter(folder: Path, owner: str) -> None:
    files = make_adapter(folder / "toy", folder / "files", seed=1)
    import_adapter(
        [files / "adapter_config.json", files / "adapter_model.safetensors"], NAME, str(folder / "toy"), owner
    )


def _classifier(folder: Path, studio: Studio, owner: str) -> None:
    data = labelled_file(folder / "hostile.jsonl", lambda name, i: LABELS[i % 2])
    settings = classifier_settings(folder / "classifier") | {"model": str(folder / "toy"), "data": str(data)}
    train.carry_out(studio.jobs.store.create(Recipe.from_settings(settings), NAME, begin=True, owner=owner).id)


def _run(studio: Studio, owner: str) -> None:
    toy = toy_run(studio.jobs.store, NAME, owner=owner, sample_prompts=(ALL,), probe_text=ALL)
    toy.audit(*LABELS, ALL).train(20)
    toy.evaluate(21, (ALL, ALL))
    toy.save_adapter().finish("failed", ALL)


class Watched:
    """A visitor's page, the requests that it makes, and what has no business in it."""

    def __init__(self, page: Page, visitor: Visitor) -> None:
        self.page, self.url = page, str(visitor.http.base_url).rstrip("/") + "/"
        self.asked: list[str] = []
        page.on("request", lambda request: self.asked.append(request.url))
        page.context.add_cookies([{"name": each.name, "value": each.value or "", "url": self.url}
                                  for each in visitor.http.cookies.jar])  # fmt: skip

    def is_unharmed(self) -> None:
        assert self.page.evaluate("window.__p") is None
        assert self.page.locator(HARM).evaluate_all("nodes => nodes.map(node => node.outerHTML)") == []
        assert [url for url in self.asked if not url.startswith((self.url, "blob:", "data:"))] == []


@pytest.fixture
def ada(page: Page, place: Studio) -> Iterator[Watched]:
    watched = Watched(page, place.ada)
    yield watched
    watched.is_unharmed()


def says(where: Locator, text: str) -> None:
    expect(where.filter(has_text=text).first).to_be_visible(timeout=SLOW)


def test_chat(ada: Watched, page: Page):
    chat = StudioPage(page, ada.url).open()
    chat.set_length(12)
    page.locator("#set-seed textarea, #set-seed input").fill("7")
    page.locator("#system textarea").fill(LABELS[1])
    choose(page, "adapter", NAME)
    page.locator("#beside input").check()
    says(page.locator("#sides h2"), NAME)
    chat.ask(ALL)
    says(chat.toast, "tokens")  # more than the toy can read
    chat.ask_and_wait(" ".join(PAYLOADS[:6]))
    says(page.locator("#stats"), NAME)
    says(chat.questions, LABELS[0])
    ada.is_unharmed()
    unfold(page, "Adapters")
    upload(page, "#adapter-upload", f"{LABELS[0]}.json", b"x")
    says(chat.toast, "onerror")


def upload(page: Page, button: str, name: str, content: bytes) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator(button).click()
    chooser.value.set_files({"name": name, "mimeType": "text/plain", "buffer": content})


def test_classify(ada: Watched, page: Page):
    classify = ClassifyPage(page, ada.url).open()
    classify.labels.fill("\n".join(LABELS))
    classify.box.fill(ALL)
    classify.box.press("Enter")
    expect(classify.result.locator(".cl-bars li")).to_have_count(2, timeout=SLOW)
    says(classify.result, LABELS[1])
    classify.upload(f"{LABELS[0]}.csv", table([ALL, *LABELS], [[ALL, LABELS[i % 2], ALL] for i in range(8)]))
    says(page.locator("#classify-column"), "onerror")
    classify.choose("classify-column", ALL)
    classify.choose("classify-true-column", LABELS[0])
    page.locator("#classify-file-go").click()
    says(classify.file_result, "rows with a true label")
    ada.is_unharmed()
    classify.show_quality()
    says(classify.quality.locator(".ev-matrix"), LABELS[1])
    classify.quality.get_by_role("button", name="All texts").click()
    says(classify.quality, LABELS[0])
    ada.is_unharmed()
    page.locator("#classify-by input").click()
    page.get_by_role("option", name=NAME).last.click()
    says(classify.quality, NAME)
    says(classify.quality.locator(".ev-matrix"), LABELS[0])


def table(names: list[str], rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([names, *rows])
    return text.getvalue()


def test_what_classifying_refuses(ada: Watched, page: Page):
    classify = ClassifyPage(page, ada.url).open()
    for labels in (ALL, f"{ALL}\n{ALL}", "\n".join(f"{ALL} {i}" for i in range(99))):
        classify.labels.fill(labels)
        classify.box.press("Enter")
        expect(classify.toast).to_be_visible(timeout=SLOW)
        page.get_by_test_id("toast-close").click()
        expect(classify.toast).to_have_count(0)
    page.get_by_role("tab", name="File", exact=True).click()
    upload(page, "#classify-upload", f"{ALL}.csv", b"%PDF-1.4")
    says(classify.toast, "onerror")


def test_finetune(ada: Watched, page: Page, place: Studio):
    tuning = FinetunePage(page, ada.url).open()
    tuning.upload(f"{ALL}.csv", table([NAME, *LABELS], [[ALL[:200], ALL[200:400], ""]] * 20).encode())
    says(tuning.preview.locator(".dp-note").first, "the columns are a guess")
    tuning.choose("format", "prompt_completion")
    tuning.choose("column-prompt", NAME)
    tuning.choose("column-completion", LABELS[0])
    says(tuning.preview, "onerror=window.__p=1")
    ada.is_unharmed()
    page.locator("#run-name input, #run-name textarea").first.fill(NAME)
    page.locator("#all-settings").get_by_role("button").first.click()
    tuning.set("sample_prompts", ALL)
    tuning.set("probe_text", ALL)
    run = tuning.begin(max_length=512)
    says(tuning.toast, NAME)
    says(tuning.run, NAME)
    place.jobs.cancel(run)
    tuning.show_new()
    upload(page, "#load-recipe", f"{ALL}.yaml", f"{LABELS[0]}: 1".encode())
    says(tuning.toast, "onerror")


def test_runs(ada: Watched, page: Page, place: Studio, browser: Browser):
    """The list, a run, a comparison and an export; and the same run before the eyes of who was shown it."""
    tuning = FinetunePage(page, ada.url).open(f"?run={run_named(place, 'failed')}")
    looked_at(tuning)
    says(page.locator("#export-title"), NAME)
    page.locator("#make-export").click()
    expect(page.locator("#export-result .dp-problem, #export-result .dp-download").first).to_be_visible(timeout=SLOW)
    for box in tuning.page.locator(".rn-items").get_by_label("Compare").all()[:2]:
        box.check()
    says(page.locator(".rn-comparison"), NAME)
    page.locator(".rn-comparison").get_by_role("button", name="Close comparison").click()
    tuning.act("Share")
    says(tuning.toast, NAME)
    expect(tuning.run.get_by_role("button", name="Stop sharing")).to_be_visible()

    context = browser.new_context()
    bob = Watched(context.new_page(), place.bob)
    looked_at(FinetunePage(bob.page, bob.url).open(f"?run={run_named(place, 'failed')}"))
    bob.is_unharmed()
    context.close()


def run_named(place: Studio, state: str) -> str:
    return next(run.id for run in place.jobs.store.list() if run.name == NAME and run.state == state)


def looked_at(tuning: FinetunePage) -> None:
    expect(tuning.run.locator("h3")).to_have_text(NAME)
    says(tuning.run.locator(".rn-failed"), LABELS[0])
    says(tuning.run.locator(".rn-warnings li"), LABELS[1])
    for tab, shows in (
        ("Answers", LABELS[0]),
        ("Setup", "devils_dictionary"),
        ("Routing", NAME),
        ("Curves", NAME),
    ):
        tuning.run.get_by_role("radio", name=tab, exact=True).check(force=True)
        says(tuning.run, shows)
