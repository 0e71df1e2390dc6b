"""The fine-tune tab in a browser: with a toy model where servers, trainers and browsers are killed, and once, from the
upload to the export, with the starter."""

from __future__ import annotations

import json
import os
import re
import signal
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from studio.backend.bench.viewers import viewers
from studio.backend.recipe import Recipe
from studio.backend.runs.run import is_alive
from studio.backend.runs.store import RunStore
from studio.errors import StudioError
from tests.builders.adapters import finished_run
from tests.builders.fake_datasets import FakeDatasets, serving, use
from tests.builders.fake_hub import REPO, FakeHub, serving_hub
from tests.builders.ports import free_port
from tests.builders.served import ToyStudio
from tests.builders.toy_folder import spelling_toy
from tests.builders.waiting import until
from tests.e2e.finetune_page import FinetunePage
from tests.e2e.studio_page import SLOW, Server, StudioPage, unfold

ROWS = "".join(
    json.dumps({"prompt": f"Say {i}", "completion": f"{i} is {'even' if i % 2 == 0 else 'odd'}"}) + "\n"
    for i in range(40)
).encode()
TOKEN = "hf_S3cretOfThisMachine"
LONG = {"max_steps": 5000, "eval_steps": 6, "save_steps": 6, "max_length": 64, "sample_tokens": 2}


class Place:
    """A server on the toy with a home and a hub of its own, which can be killed and started again."""

    def __init__(self, folder: Path, hub: FakeHub) -> None:
        self.folder, self.port, self.hub = folder, free_port(), hub
        self.home = folder / "home"
        self.model = str(spelling_toy(folder / "toy"))
        self.store = RunStore(self.home)
        self.start()

    def start(self) -> None:
        environment = {
            "STUDIO_HOME": str(self.home), "OMP_NUM_THREADS": "1",
            "HF_ENDPOINT": self.hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1",
        }  # fmt: skip
        self.server = Server(self.port, self.folder / "log.txt", "--model", self.model, **environment)

    def kill(self) -> None:
        self.server.process.kill()
        self.server.process.wait(30)

    def close(self) -> None:
        self.kill()
        for run in self.store.list():
            if run.state == "running" and is_alive(run):
                os.kill(run.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with serving_hub() as hub:
        made = Place(tmp_path_factory.mktemp("place"), hub)
        yield made
        made.close()


@pytest.fixture
def form(page: Page, toy: ToyStudio) -> FinetunePage:
    """The tab of a studio that trains nothing."""
    return FinetunePage(page, toy.url).open()


@pytest.fixture
def tuning(page: Page, place: Place) -> FinetunePage:
    """The tab of a server that can be killed."""
    return FinetunePage(page, place.server.url).open()


def test_a_file_is_uploaded_mapped_checked_and_the_form_survives_a_refresh(form):
    bad = b"Frage,Antwort\n1+1?,2\n<img src=x onerror=window.__p=1>,${window.__p=1}\n3+3?,\n"
    form.upload("fragen.csv", bad)
    expect(form.preview.locator(".dp-note").first).to_contain_text("the columns are a guess", timeout=SLOW)
    form.choose("format", "prompt_completion")
    form.choose("column-prompt", "Frage")
    form.choose("column-completion", "Antwort")
    expect(form.preview.locator("h3")).to_contain_text("read as prompt_completion", timeout=SLOW)
    expect(form.preview.locator("mark.dp-trained").nth(1)).to_have_text("2")
    expect(form.preview.locator("mark.dp-trained").nth(2)).to_have_text("<|im_end|>")
    expect(form.preview.locator(".dp-table").last).to_contain_text("4Antwortis empty")
    form.set("r", 5)
    form.page.locator("#run-name input, #run-name textarea").first.fill("kept")
    expect(form.command).to_have_value("python -m studio train recipe.yaml data=fragen.csv")
    form.set("epochs", -1)
    expect(form.command).to_have_value(
        "# Change these settings: epochs is -1: set a number above 0 and at most 1000, such as 3."
    )
    form.set("epochs", 2)
    expect(form.command).to_have_value("python -m studio train recipe.yaml data=fragen.csv")
    again = FinetunePage(form.page, form.url).open()
    expect(again.preview.locator("h3")).to_contain_text("fragen.csv", timeout=SLOW)
    expect(again.page.locator("#recipe-r input")).to_have_value("5")
    expect(again.page.locator("#recipe-epochs input")).to_have_value("2")
    expect(again.page.locator("#run-name input, #run-name textarea").first).to_have_value("kept")
    expect(again.page.locator("#column-completion input")).to_have_value("Antwort")


def test_a_data_set_of_the_hub_is_previewed_and_survives_a_refresh(form, monkeypatch, tmp_path):
    with serving(FakeDatasets()) as hub:
        use(hub, monkeypatch, tmp_path)
        hub.add("me/rows", {"train": [{"prompt": f"Say {i}", "completion": "<b>yes"} for i in range(9)]})
        name = form.page.locator("#hub input, #hub textarea").first
        name.fill("me/rows:validation")
        form.page.locator("#hub .submit-button").click()
        expect(form.preview.locator(".dp-problem")).to_contain_text("Bad split: validation", timeout=SLOW)
        name.fill("me/rows:train[:6]")
        name.press("Enter")
        expect(form.preview.locator("h3")).to_contain_text("rows-train_to_6.jsonl", timeout=SLOW)
        expect(form.page.get_by_label("Hub data set")).to_be_checked()
        expect(form.command).to_have_value("python -m studio train recipe.yaml data=hub:me/rows:train[:6]")
        again = FinetunePage(form.page, form.url).open()
        expect(again.preview.locator("h3")).to_contain_text("rows-train_to_6.jsonl", timeout=SLOW)
        expect(name).to_have_value("me/rows:train[:6]")


def test_a_form_in_two_tabs_is_said_and_a_pasted_text_is_kept(form, page):
    expect(form.page.locator("#draft-elsewhere p")).to_be_hidden()
    other = FinetunePage(page.context.new_page(), form.url).open()
    other.set("r", 11)
    expect(form.page.locator("#draft-elsewhere p")).to_be_visible(timeout=SLOW)
    name = form.page.locator("#run-name input, #run-name textarea").first
    name.evaluate("node => { node.focus(); document.execCommand('insertText', false, 'pasted'); node.blur(); }")
    expect(other.page.locator("#draft-elsewhere p")).to_be_visible(timeout=SLOW)
    again = form.open()
    expect(again.page.locator("#run-name input, #run-name textarea").first).to_have_value("pasted", timeout=SLOW)
    other.page.close()


def test_a_recipe_is_saved_and_loaded(form, tmp_path):
    bundled = form.page.locator("#bundled")
    form.set("r", 3)
    expect(form.command).to_have_value("python -m studio train recipe.yaml data=devils-dictionary")
    expect(bundled).to_contain_text("Edited")
    with form.page.expect_download() as download:
        form.page.locator("#save-recipe").click()
    file = tmp_path / "recipe.yaml"
    download.value.save_as(file)
    assert "r: 3\n" in file.read_text()
    file.write_text(file.read_text().replace("r: 3\n", "r: 9\n").replace("devils-dictionary", "identity"))
    with form.page.expect_file_chooser() as chooser:
        form.page.locator("#load-recipe").click()
    chooser.value.set_files(file)
    expect(form.page.locator("#recipe-r input")).to_have_value("9", timeout=SLOW)
    expect(form.preview.locator("h3")).to_contain_text("identity.jsonl", timeout=SLOW)
    expect(bundled).to_contain_text("from a file")
    expect(bundled.locator("input")).to_have_value("")
    form.page.get_by_label("Classify", exact=True).check()
    expect(bundled.locator("input")).to_have_value("starter/classify_quick", timeout=SLOW)
    form.open()
    expect(bundled.locator("input")).to_have_value("starter/classify_quick")
    expect(bundled).not_to_contain_text("Edited")


def test_a_run_outlives_its_browser_its_trainer_and_its_server(tuning, place, browser: Browser):
    """What two browsers see of it; and an answer outlives the server that wrote it."""
    tuning.upload("rows.jsonl", ROWS)
    expect(tuning.preview.locator("h3")).to_contain_text("rows.jsonl", timeout=SLOW)
    run_id = tuning.begin(**LONG)
    tuning.until_step(8)
    tuning.page.goto("about:blank")

    other = browser.new_context(viewport={"width": 390, "height": 844})
    phone = FinetunePage(other.new_page(), place.server.url).open(f"?run={run_id}")
    phone.until_step(10)
    assert phone.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    os.kill(place.store.get(run_id).pid, signal.SIGKILL)
    phone.until_state("Interrupted")
    expect(phone.run.locator(".rn-message")).to_contain_text("memory ran out")
    phone.act("Resume")
    phone.until_state("Running")
    phone.until_step(14)

    chat = StudioPage(other.new_page(), place.server.url).open()
    chat.set_length(12)
    chat.ask_and_wait("Say 7")
    routing = chat.load_table()
    place.kill()
    pid, before = place.store.get(run_id).pid, place.store.get(run_id).step
    expect(phone.page.locator(".rn-trouble")).to_be_visible(timeout=SLOW)
    place.start()
    tuning.open(f"?run={run_id}")
    tuning.until_step(before + 5)
    phone.until_step(before + 5)
    assert place.store.get(run_id).pid == pid and place.store.get(run_id).state == "running"
    chat.open()
    chat.answers.first.click()
    expect(chat.page.locator(".rp-status")).to_contain_text("recomputed", timeout=SLOW)
    # One pass over all tokens may round other than their one-by-one decoding.
    assert np.abs(np.array(chat.load_table()) - routing).max() <= 0.1

    # A second run waits, and its place is shown.
    tuning.show_new()
    name = "<img src=x onerror=window.__p=1>"
    tuning.page.locator("#run-name input, #run-name textarea").first.fill(name)
    second = tuning.begin(**LONG)
    expect(tuning.toast.filter(has_text=name)).to_be_visible()
    expect(tuning.run.locator(".rn-message")).to_contain_text("1st in the queue", timeout=SLOW)
    tuning.act("Delete")
    tuning.page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(tuning.rows.filter(has_text=name)).to_have_count(0, timeout=SLOW)
    assert second not in [run.id for run in place.store.list()]
    tuning.rows.filter(has_text=place.store.get(run_id).name).first.click()
    tuning.act("Cancel")
    tuning.until_state("Cancelled")
    phone.until_state("Cancelled")
    cancelled = place.store.get(run_id)
    until(lambda: not is_alive(cancelled))
    assert (cancelled.adapter / "adapter_model.safetensors").is_file()
    events = [*cancelled.events.read()]
    assert {event.step for event in events if event.kind == "log"} == set(range(1, cancelled.step + 1))
    assert [event.kind for event in events].count("resumed") == 1
    other.close()


def test_an_adapter_is_exported_and_pushed_to_the_hub(tuning, page, place, tmp_path):
    run = finished_run(Path(place.model), store=place.store, name="pirate")
    tuning.open(f"?run={run.id}")
    with zipfile.ZipFile(tuning.export("Merged model, 16-bit", tmp_path)) as archive:
        names = {Path(name).name for name in archive.namelist()}
    assert {"config.json", "model.safetensors", "merge_proof.json", "README.md", "tokenizer.json"} <= names
    expect(page.locator("#export-result")).to_contain_text("Merge proof")
    tuning.export("Adapter", tmp_path)
    unfold(page, "Push to the Hugging Face Hub")
    expect(page.locator("#push-place")).to_contain_text("this machine's token")
    expect(page.get_by_role("checkbox", name="Public")).not_to_be_checked()
    name = page.get_by_label("Repository")
    expect(name).to_have_value("pirate")
    name.fill("me/pirate")
    expect(page.locator("#push-preview")).to_contain_text(f"Files for {REPO}: README.md, adapter_config.json")
    page.locator("#push-preview summary").click()
    expect(page.locator("#push-preview pre")).to_contain_text(f'PeftModel.from_pretrained(base, "{REPO}")')
    assert not place.hub.files
    page.get_by_role("button", name="Push adapter").click()
    expect(page.locator("#push-result a")).to_have_attribute("href", f"{place.hub.url}/{REPO}", timeout=SLOW)
    expect(page.locator("#push-result")).to_contain_text("It is private")
    assert {*place.hub.files} == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert place.hub.visibility == {REPO: "private"} and place.hub.given() == {f"Bearer {TOKEN}"}
    written = [file for file in place.folder.rglob("*") if file.is_file() and TOKEN.encode() in file.read_bytes()]
    assert written == [] and TOKEN not in page.content()


def test_a_hundred_pages_watch_a_run_and_all_are_answered(place, monkeypatch):
    monkeypatch.setenv("STUDIO_HOME", str(place.home))
    run = place.store.create(Recipe.from_settings({"model": place.model}), begin=True)
    place.store.finish(run.id, "done")
    with ThreadPoolExecutor(1) as pool:  # Playwright's own event loop is in this thread
        row = pool.submit(viewers, place.server.url, 100, 2).result()["rows"][0]
        assert row["failed"] == 0 and row["polls"] >= 100
        with pytest.raises(StudioError, match="No studio answers"):
            pool.submit(viewers, f"http://127.0.0.1:{free_port()}/", 1, 1).result()


def test_bad_settings_and_files_are_said_and_make_no_run(form):
    before = len(RunStore().list())
    form.set("learning_rate", "1e9")
    form.set("r", 0)
    form.start.click()
    said = form.toast.filter(has_text="r is 0")
    expect(said.first).to_contain_text("learning_rate is 1000000000", timeout=SLOW)
    form.upload("rows.csv", b"PK\x03\x04" + b"\0" * 200)
    expect(form.preview.locator(".dp-problem")).to_contain_text("rows.csv", timeout=SLOW)
    expect(form.page.locator("#recipe-r input")).to_have_value("0")
    assert len(RunStore().list()) == before


def discard(store: RunStore, run_id: str) -> None:
    run = store.get(run_id)
    if is_alive(run):
        os.kill(run.pid, signal.SIGKILL)
    store.finish(run.id, "interrupted")
    store.delete(run.id)


@pytest.mark.parametrize(("size", "theme"), [((390, 844), "light")])
def test_the_form_fits_a_phone(page, toy, size, theme):
    tuning = FinetunePage(page, toy.url)
    page.goto(f"{toy.url}?__theme={theme}")
    page.get_by_role("tab", name="Fine-tune").click()
    expect(tuning.preview.locator("h3")).to_be_visible(timeout=SLOW)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_from_upload_to_export_with_the_starter(page, starter_server: Server, tmp_path):
    """The journey of a person: bring a file, look, check, start, watch, chat with the result, take it along."""
    tuning = FinetunePage(page, starter_server.url).open()
    tuning.upload("rows.jsonl", b"\n".join(ROWS.splitlines()[:10]))
    expect(tuning.preview.locator("h3")).to_contain_text("rows.jsonl", timeout=SLOW)
    small = {"max_length": 64, "max_steps": 2, "batch_size": 2, "eval_steps": 2, "save_steps": 2}
    samples = {"sample_prompts": "Say 7", "sample_tokens": 2}
    run_id = tuning.begin(**small, **samples, learning_rate=0.01)  # a smaller change would be lost in 16 bits
    try:
        tuning.until_state("Done", seconds=420)
        store = RunStore()
        assert (store.get(run_id).adapter / "adapter_model.safetensors").is_file()
        tuning.run.get_by_role("radio", name="Setup").click(force=True)
        expect(tuning.run).to_contain_text("MLP experts")
        tuning.act("Export")
        with zipfile.ZipFile(tuning.export("Adapter", tmp_path)) as archive:
            assert "adapter_model.safetensors" in {Path(name).name for name in archive.namelist()}
        tuning.act("Chat with it")
        expect(page.locator("#adapter input")).to_have_value(re.compile(run_id[:8]), timeout=SLOW)
        studio = StudioPage(page, starter_server.url)
        studio.set_length(8)
        studio.ask_and_wait("Say 7")
        expect(page.locator("#stats")).to_contain_text(run_id[:8])
    finally:
        discard(RunStore(), run_id)
