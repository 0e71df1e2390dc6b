"""What the fine-tune tab does, with a toy model and no browser."""

import io
import json
import threading
import zipfile

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.testclient import TestClient

from studio.backend.adapters.find import find
from studio.backend.adapters.uploads import import_adapter
from studio.backend.chat.engine import Engine
from studio.backend.export import kept
from studio.backend.recipe import Recipe
from studio.backend.runs.run import CHECK
from studio.backend.system import plan
from studio.backend.training import run as train
from studio.backend.training.queue import Jobs
from studio.errors import StudioError
from studio.ui.common import downloads
from studio.ui.finetune import data_preview
from studio.ui.finetune import handlers as finetune_handlers
from studio.ui.finetune.handlers import FIELDS, FinetuneHandlers
from studio.ui.finetune.run_draft import OWN_FILE, Draft
from studio.ui.server.identity import Identity
from tests.builders.in_process import run_json
from tests.builders.toy_folder import toy_folder, toy_rows


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.fixture
def handlers(home) -> FinetuneHandlers:
    """Of a server that was started with the toy; nothing supervises its queue."""
    engine = Engine()
    engine.load(str(toy_folder(home / "toy")))
    return FinetuneHandlers(engine, Jobs())


@pytest.fixture
def trained(handlers, home):
    """A run of the toy that is done."""
    rows = toy_rows(home / "rows.jsonl", 12)
    settings = {
        "model": str(home / "toy"), "data": str(rows), "precision": "fp32", "max_length": 64, "learning_rate": 0.02,
        "max_steps": 3, "eval_steps": 3, "save_steps": 3, "sample_tokens": 1,
    }  # fmt: skip
    return train.start(Recipe.from_settings(settings), "<b>mine<b>")


def draft_of(handlers, **changes) -> Draft:
    draft = handlers.fresh()
    return Draft(settings=draft.settings | changes)


def test_a_fresh_draft_is_of_the_loaded_model(handlers, home):
    assert handlers.fresh().settings["model"] == str(home / "toy")
    assert (handlers.models()[-1]) == ("toy", str(home / "toy"))
    assert handlers.command(handlers.fresh()) == "python -m studio train recipe.yaml data=devils-dictionary"


def test_the_command_says_what_is_wrong_instead(handlers):
    assert handlers.command(draft_of(handlers, r=0)).startswith("# Change these settings: r is 0")


def test_a_file_is_uploaded_looked_at_and_mapped(handlers, home):
    file = home / "fragen.csv"
    file.write_text("Frage,Antwort\n<img src=x onerror=alert(1)>,${7*7}\n")
    draft = handlers.upload(handlers.fresh(), file)
    seen = handlers.look(draft)
    assert "the columns are a guess" in seen.html and "as they are in the file" in seen.html
    assert (seen.columns["prompt"].value, seen.columns["completion"].value) == ("Frage", "Antwort")
    chosen = Draft(OWN_FILE, draft.upload, draft.file, "prompt_completion", {}, draft.settings)
    columns = handlers.look(chosen).columns
    assert {name for name in FIELDS if columns[name].shown} == {"prompt", "completion", "system", "history", "context"}
    assert columns["prompt"] == (True, True, ["Frage", "Antwort"], "Frage") and not columns["system"].needed
    mapped = Draft(OWN_FILE, draft.upload, draft.file, "auto", {"prompt": "Frage", "completion": "Antwort"},
                   draft.settings)  # fmt: skip
    seen = handlers.look(mapped)
    assert "<img" not in seen.html and "&lt;img src=x onerror=alert(1)&gt;" in seen.html
    assert seen.columns["completion"].value == "Antwort"


def test_bad_rows_are_listed_with_line_and_remedy(handlers, home):
    file = home / "rows.csv"
    file.write_text("prompt,completion\na,b\nc,\n")
    html = handlers.look(handlers.upload(handlers.fresh(), file)).html
    assert "1 bad rows" in html and "<td>3</td><td>completion</td><td>is empty</td>" in html and "Fill it in" in html


def test_without_a_file_there_is_a_next_step(handlers):
    assert handlers.look(Draft(source=OWN_FILE)).html == data_preview.waiting()


def test_a_recipe_is_saved_and_loaded_again(handlers, home):
    file = home / "recipe.yaml"
    file.write_text(handlers.saved(draft_of(handlers, r=5, learning_rate=1e-5)))
    assert "data: devils-dictionary" in file.read_text()
    columns = {"prompt": "prompt", "completion": "completion"}
    found = Draft(settings=handlers.fresh().settings, columns=columns)
    assert "columns: {}" in handlers.saved(found)
    draft, notice = handlers.load(handlers.fresh(), file)
    assert (draft.settings["r"], draft.settings["learning_rate"], notice) == (5, 1e-5, "")
    file.write_text("model: /etc\nr: 7")
    draft, notice = handlers.load(handlers.fresh(), file)
    assert (draft.settings["model"], draft.settings["r"]) == ("starter", 7) and "'/etc' is not in the list" in notice
    file.write_text("a: &a [*a, *a]")
    with pytest.raises(StudioError, match=r"^recipe\.yaml can't be read"):
        handlers.load(handlers.fresh(), file)


def test_start_queues_once_however_often_it_is_pressed(handlers):
    ticket = handlers.ticket()
    run = handlers.start(draft_of(handlers, max_steps=2), ticket)
    assert run.state == "queued" and run.recipe().max_steps == 2
    assert handlers.start(draft_of(handlers, max_steps=2), ticket).id == run.id
    assert handlers.start(handlers.fresh(), handlers.ticket()).id != run.id
    assert len(handlers.jobs.store.list()) == 2


def test_a_demo_trains_only_the_starter_and_the_loaded_model(handlers, home, monkeypatch):
    """Any other would be downloaded for a visitor, and its run needs memory that the server does not have."""
    monkeypatch.setenv("HF_HUB_CACHE", str(home / "hub"))
    large = draft_of(handlers, model="jetmoe/jetmoe-8b", max_steps=9, batch_size=1)
    kept_run = handlers.start(large, handlers.ticket())
    handlers.act("cancel", kept_run.id)
    monkeypatch.setenv("STUDIO_DEMO", "1")
    assert {model for _, model in handlers.models()} == {"starter", str(home / "toy")}
    for call in (
        lambda: handlers.start(large, handlers.ticket()),
        lambda: next(handlers.check(large)),
        lambda: handlers.look(large),
        lambda: handlers.act("resume", kept_run.id),
    ):
        with pytest.raises(StudioError, match=r"not in the list|a run is limited to model starter or"):
            call()
    assert handlers.jobs.store.get(kept_run.id).state == "cancelled"
    with pytest.raises(StudioError, match="precision auto"):
        handlers.start(draft_of(handlers, max_steps=9, batch_size=1, precision="fp32"), handlers.ticket())
    run = handlers.start(draft_of(handlers, max_steps=9, batch_size=1), handlers.ticket())
    assert run.recipe().model == str(home / "toy")


def test_what_can_not_be_trained_on_makes_no_run(handlers, home):
    file = home / "rows.csv"
    file.write_text("a,b,c\n1,2,3\n")
    draft = handlers.upload(handlers.fresh(), file)
    for bad in (draft, draft_of(handlers, epochs=-1)):
        with pytest.raises(StudioError):
            handlers.start(bad, handlers.ticket())
    assert not handlers.jobs.store.list()


def test_actions_are_those_of_the_queue_and_no_others(handlers):
    run = handlers.start(handlers.fresh(), handlers.ticket())
    assert "removed from the queue" in handlers.act("cancel", run.id)
    with pytest.raises(StudioError, match="nothing left to cancel"):
        handlers.act("cancel", run.id)
    assert "resumes from its start" in handlers.act("resume", run.id)
    handlers.act("cancel", run.id)
    assert "deleted" in handlers.act("delete", run.id) and not handlers.jobs.store.list()
    for action, run_id in (("delete", run.id), ("delete", "../x"), ("shell", run.id), ("delete", "")):
        with pytest.raises(StudioError):
            handlers.act(action, run_id)


def test_a_new_run_gets_the_settings_and_the_data_of_an_earlier_one(handlers, home):
    file = home / "rows.csv"
    file.write_text("prompt,completion\n" + "".join(f"{n} plus {n},{2 * n}\n" for n in range(20)))
    draft = handlers.upload(draft_of(handlers, r=4, precision="fp32"), file)
    run = handlers.start(draft, "ticket")
    again, notice = handlers.again(run.id)
    assert (again.source, again.upload, again.file, again.settings["r"]) == (OWN_FILE, draft.upload, "rows.csv", 4)
    assert not notice and again.recipe([str(home / "toy")]) == run.recipe()
    assert handlers.start(again, "another").id != run.id
    sample = handlers.start(draft_of(handlers), "of a sample")
    assert handlers.again(sample.id)[0].source == "devils-dictionary"
    local = handlers.jobs.store.create(Recipe(data=str(file), model="a-model-that-is-gone"))
    again, notice = handlers.again(local.id)
    assert again.upload == "" and again.source == OWN_FILE
    assert "the starter is used instead" in notice and "rows.csv is no longer stored" in notice


def test_a_run_gets_what_a_check_of_its_settings_has_measured(handlers):
    draft = draft_of(handlers, max_steps=2, precision="fp32")
    report = {"data": {"fingerprint": "f"}, "forecast": {"steps": 2}}
    handlers._keep_checked(draft.recipe([draft.settings["model"]]), report)
    run = handlers.start(draft, "ticket")
    assert json.loads((run.folder / CHECK).read_text()) == {"fingerprint": "f", "forecast": {"steps": 2}}
    other = handlers.start(draft_of(handlers, max_steps=3, precision="fp32"), "another")
    assert not (other.folder / CHECK).exists()


def test_a_run_is_described(handlers):
    run = handlers.start(draft_of(handlers), "ticket")
    assert "“after”" in handlers.describe(run.id, "after", "worth it")
    assert handlers.jobs.store.get(run.id).notes == "worth it"


def test_the_check_is_that_of_the_command_line_and_ends_with_its_viewer(handlers, monkeypatch):
    monkeypatch.setattr(finetune_handlers, "run_json", run_json)
    *waiting, last = handlers.check(draft_of(handlers, max_length=64, max_steps=5))
    assert all("running three steps" in html for html in waiting)
    assert "MLP experts" in last and "for 5 steps" in last
    begun = threading.Event()
    cancelled = threading.Event()

    def endless(command, cancel):
        begun.set()
        assert cancel.wait(60)
        cancelled.set()

    monkeypatch.setattr(finetune_handlers, "run_json", endless)
    left = handlers.check(handlers.fresh())
    next(left)
    assert begun.wait(60)
    left.close()
    assert cancelled.wait(60)


def test_a_demo_has_the_memory_for_one_model_at_a_time(handlers, monkeypatch):
    monkeypatch.setenv("STUDIO_DEMO", "1")
    monkeypatch.setattr(finetune_handlers, "run_json", lambda command, cancel: cancel.wait(60))
    draft = draft_of(handlers, max_steps=9, batch_size=1)
    checking = handlers.check(draft)
    next(checking)
    with pytest.raises(StudioError, match="Another check is running"):
        next(handlers.check(draft))
    run = handlers.start(draft, handlers.ticket())
    handlers.jobs._tick()
    assert handlers.jobs.store.get(run.id).state == "queued", "it waits for the check"
    checking.close()
    handlers.jobs.store.mark_running(run.id)
    with pytest.raises(StudioError, match="Another run is being trained, and there is memory for one at a time"):
        next(handlers.check(draft))
    handlers.jobs.close()


def test_a_demo_queues_no_run_that_its_memory_does_not_hold(handlers, monkeypatch):
    monkeypatch.setenv("STUDIO_DEMO", "1")
    monkeypatch.setattr(plan, "available_memory", lambda: 8 * plan.GIB)
    large = draft_of(handlers, model="starter", max_steps=9, batch_size=8, max_length=1024)
    with pytest.raises(StudioError, match=r"and 8\.0 GiB are free: lower batch_size"):
        handlers.start(large, handlers.ticket())
    assert not handlers.jobs.store.list()


def test_an_export_that_fails_leaves_the_earlier_one(handlers, trained, monkeypatch):
    list(handlers.export(trained.id, "adapter"))

    def fails(run_id, folder):
        folder.mkdir()
        raise StudioError("The disk is full.")

    monkeypatch.setattr(kept, "export", fails)
    assert "The disk is full." in list(handlers.export(trained.id, "adapter"))[-1]
    assert [each.name for each in (trained.folder / "exports").iterdir()] == ["adapter"]
    assert kept.exported(handlers.jobs.store, trained.id, "adapter") is not None


def test_exports_are_made_shown_and_downloaded_by_their_address_only(handlers, trained, tmp_path):
    assert handlers.exportable(trained.id).id == trained.id and handlers.exportable("0") is None
    *_, html = handlers.export(trained.id, "adapter")
    address = downloads.address(trained.id, "adapter")
    assert f'href="{address}"' in html and "mine" in html and "<b>" not in html
    client = TestClient(Starlette(routes=downloads.routes(handlers.jobs.store), middleware=[Middleware(Identity)]))
    answer = client.get("/" + address)
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert answer.headers["content-disposition"].endswith(f'filename="adapter-{trained.id[:8]}.zip"')
    assert archive.testzip() is None
    assert {*archive.namelist()} == {
        f"adapter/{name}" for name in ("README.md", "adapter_config.json", "adapter_model.safetensors")
    }
    weights = (trained.adapter / "adapter_model.safetensors").read_bytes()
    assert archive.read("adapter/adapter_model.safetensors") == weights
    (tmp_path / "adapter.zip").write_bytes(answer.content)
    uploaded = find(import_adapter([tmp_path / "adapter.zip"], "", trained.model).id).folder
    assert (uploaded / "adapter_model.safetensors").read_bytes() == weights
    for other in (
        downloads.address(trained.id, "merged-bf16"), downloads.address(trained.id, "checkpoints"),
        downloads.address(trained.id[:8], "adapter"), downloads.address("0" * 8, "adapter"),
        downloads.address("..%2f..", "adapter"), "exports/../recipe.yaml",
    ):  # fmt: skip
        assert client.get("/" + other).status_code == 404


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"error": "0"}', "\xff"])
def test_a_damaged_merge_proof_is_a_sentence(home, text):
    (home / "merge_proof.json").write_text(text, encoding="latin-1")
    with pytest.raises(StudioError, match="Export the model again"):
        kept.proof(home)


def test_a_merged_model_comes_with_its_proof(handlers, trained, monkeypatch):
    monkeypatch.setattr(kept, "run_json", run_json)
    *_, html = handlers.export(trained.id, "merged-bf16")
    folder = kept.exported(handlers.jobs.store, trained.id, "merged-bf16")
    proof = json.loads((folder / "merge_proof.json").read_text())
    assert f"{proof['error']:.3f}" in html and "Merge proof" in html


def test_what_can_not_be_exported_is_said(handlers, trained):
    assert "Choose what to export" in list(handlers.export(trained.id, "everything"))[-1]
    queued = handlers.start(handlers.fresh(), handlers.ticket())
    assert "has no adapter" in list(handlers.export(queued.id, "adapter"))[-1]
    for prefix in (trained.id[:8], "../..", ""):
        with pytest.raises(StudioError, match="no such run"):
            list(handlers.export(prefix, "adapter"))
