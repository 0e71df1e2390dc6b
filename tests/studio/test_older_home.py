"""A home that version 0.1 wrote, as it was before the modules moved, opens in this version with everything in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from studio.backend.adapters.find import choices, find_id
from studio.backend.chat.engine import Engine, Sampling
from studio.backend.data import uploads
from studio.backend.export.kept import exported
from studio.backend.recipe import Recipe
from studio.backend.runs.events import figures
from studio.backend.runs.store import RunStore
from studio.backend.training import run as train
from studio.errors import StudioError
from studio.registry import discover
from studio.ui.chat import conversation
from studio.ui.classify.form import read_form
from studio.ui.common.downloads import labelled_file
from studio.ui.common.picked_adapter import read_picked
from studio.ui.finetune import run_draft
from tests.builders.toy_folder import toy_folder

OLD = Path(__file__).parents[1] / "data" / "home_0_1"
NAMED = json.loads((OLD / "named.json").read_text())
BROWSER = json.loads((OLD / "browser.json").read_text())


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("old") / "home"
    shutil.copytree(OLD, folder)
    for file in folder.rglob("*.json"):
        file.write_text(file.read_text().replace("@HOME@", str(folder)))
    toy_folder(folder / "models" / "toy")  # the model that everything there was made with
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDIO_HOME", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def in_that_home(home, monkeypatch):
    monkeypatch.setenv("STUDIO_HOME", str(home))


def test_every_run_is_listed_in_its_state(home):
    store = RunStore()
    store.reconcile()
    assert {run.name: (run.state, run.step) for run in store.list()} == {
        "done, with an adapter": ("done", 4),
        "cancelled, with a checkpoint": ("cancelled", 4),
        "failed": ("failed", 3),
        "interrupted": ("interrupted", 3),
        "running when the server died": ("interrupted", 1),
        "queued": ("queued", 0),
        "someone's": ("cancelled", 0),
    }
    assert [run.name for run in store.list("a" * 32)] == ["someone's"]
    assert all(run.folder_exists and run.recipe().model == "toy" for run in store.list())


def test_a_run_has_its_curves_and_its_answers():
    run = RunStore().get(NAMED["done"])
    events = list(run.events.read())
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert {"audit", "eval", "log", "routing", "sample", "checkpoint", "done"} <= {event.kind for event in events}
    assert figures(iter(events))["best_eval_loss"] == run.best_eval_loss


def test_adapters_of_runs_and_uploads_answer():
    assert {choice.id for choice in choices("toy")} >= {NAMED["done"], NAMED["uploaded"]}
    assert find_id(NAMED["uploaded"]).name == "uploaded"
    engine = Engine()
    engine.load("toy")
    for adapter in (NAMED["done"], NAMED["uploaded"]):
        events = engine.generate([{"role": "user", "content": "Hi"}], Sampling(max_new_tokens=3), adapter=adapter)
        assert [event.kind for event in events][-1] == "done"


def test_files_and_exports_are_found_by_their_owners(home):
    assert uploads.find(NAMED["upload"]).read_text().startswith("text,label\n")
    assert uploads.find(NAMED["owned"], "a" * 32).name == "mails.csv"
    with pytest.raises(StudioError):
        uploads.find(NAMED["owned"], "b" * 32)
    assert labelled_file(NAMED["labelled"]).name == "mails.labelled.csv"
    export = exported(RunStore(), NAMED["done"], "adapter")
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= {file.name for file in export.iterdir()}


def test_a_recipe_reads_as_it_was_written(home):
    recipe = Recipe.load(home / "recipe.yaml")
    assert (recipe.preset, recipe.r, recipe.max_steps) == ("attention", 2, 4)
    assert recipe == RunStore().get(NAMED["done"]).recipe()


def test_what_browsers_keep_is_read_under_the_same_names():
    kept = [tab.keep() for tab in discover("studio.ui", "TAB", module="tab")]
    states = [state for each in kept for state in (each if isinstance(each, list | tuple) else [each])]
    assert {state.storage_key for state in states} == {*BROWSER.keys(), "jetmoe-studio-sampling"}
    talk = conversation.from_json(BROWSER["jetmoe-studio-conversation"])
    assert [turn.content for turn in talk.turns] == ["Say 7", "seven"]
    assert read_picked(BROWSER["jetmoe-studio-adapter"]).adapter == NAMED["uploaded"]
    assert read_form(BROWSER["jetmoe-studio-classify"]).upload == NAMED["upload"]
    assert labelled_file(BROWSER["jetmoe-studio-classified"]) is not None
    assert run_draft.from_json(BROWSER["jetmoe-studio-run-draft"]).upload == NAMED["upload"]


def test_a_run_is_resumed_from_a_checkpoint_of_then():
    run = train.resume(NAMED["cancelled"])
    assert (run.state, run.step) == ("done", 6)
    assert [event.step for event in run.events.read() if event.kind == "log"] == [1, 2, 3, 4, 5, 6]
