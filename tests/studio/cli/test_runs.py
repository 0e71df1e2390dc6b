"""`python -m studio runs`: tables for people, documents for machines, sentences for mistakes."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from studio.backend.recipe import Recipe
from studio.backend.runs.store import RunStore
from studio.cli import main as cli


@pytest.fixture
def store(tmp_path, monkeypatch) -> RunStore:
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path))
    return RunStore()


def runs(*arguments: str) -> str:
    """What `runs` prints."""
    return CliRunner().invoke(cli.app, ["runs", *arguments], catch_exceptions=False).stdout


def refused(monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["studio", "runs", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    return capsys.readouterr().err


def test_list(store):
    assert "no runs yet" in runs("list") and json.loads(runs("list", "--json")) == []
    run = store.create(Recipe(data="identity"), "first")
    store.update(run.id, step=20, best_eval_loss=1.23456)
    heading, line = runs("list").splitlines()
    assert heading.split() == ["id", "name", "state", "created", "step", "eval", "loss", "data"]
    assert line.startswith(f"{run.id[:8]}  first  queued ") and line.endswith("20    1.235      identity")
    assert json.loads(runs("list", "--json")) == [store.get(run.id).row()]


def test_a_dead_run_is_not_listed_as_running(store, monkeypatch):
    run = store.create(Recipe())
    store.mark_running(run.id)
    assert json.loads(runs("list", "--json"))[0]["state"] == "running"
    monkeypatch.setattr("studio.backend.runs.run.process_created", lambda pid: None)
    assert json.loads(runs("list", "--json"))[0]["state"] == "interrupted"


def test_show(store):
    run = store.create(Recipe(r=8), "first")
    run.events.append("eval", 20, {"eval_loss": 1.5})
    text = runs("show", run.id[:8])
    assert "name            first\n" in text and "best_eval_loss  1.5\n" in text and "\nr: 8\n" in text
    document = json.loads(runs("show", run.id, "--json"))
    assert document["run"]["id"] == run.id and document["recipe"]["r"] == 8
    assert document["figures"] == {"step": 20, "eval_loss": 1.5, "best_eval_loss": 1.5}


def test_a_deleted_folder_is_shown_as_such(store):
    run = store.create(Recipe())
    shutil.rmtree(run.folder)
    assert "queued, folder deleted" in runs("list") and "(deleted by hand)" in runs("show", run.id)
    assert json.loads(runs("show", run.id, "--json"))["recipe"] is None


def test_cancel(store, monkeypatch, capsys):
    queued, running = store.create(Recipe()), store.create(Recipe())
    store.mark_running(running.id)
    assert "was removed from the queue" in runs("cancel", queued.id[:13])
    assert json.loads(runs("cancel", running.id, "--json"))["cancel_requested"]
    assert "stops after the current step" in runs("cancel", running.id)
    assert "nothing left to cancel" in refused(monkeypatch, capsys, "cancel", queued.id)


def test_compare(store):
    first, second = store.create(Recipe(r=8), "small"), store.create(Recipe(), "large")
    first.events.append("log", 1, {"loss": 2.0})
    rows = [line.split() for line in runs("compare", first.id, second.id).splitlines()]
    assert ["r", "8", "16"] in rows and ["loss", "2", "-"] in rows and ["--", "settings"] in rows
    assert "no settings that differ" in runs("compare", second.id, store.create(Recipe()).id)
    document = json.loads(runs("compare", first.id, second.id, "--json"))
    assert document["settings"] == {"r": {first.id: 8, second.id: 16}} and set(document["figures"]) == {"step", "loss"}


def test_mistakes_get_a_sentence(store, monkeypatch, capsys):
    run = store.create(Recipe())
    assert "There is no run 000" in refused(monkeypatch, capsys, "show", "000")
    assert "is not a run id" in refused(monkeypatch, capsys, "cancel", "../..")
    assert "at least two" in refused(monkeypatch, capsys, "compare", run.id)


def test_a_damaged_list_is_made_again_and_said(store):
    run = store.create(Recipe(), "kept")
    store.path.write_bytes(b"x" * 4096)
    result = CliRunner().invoke(cli.app, ["runs", "list"], catch_exceptions=False)
    assert "rebuilt from the folders of 1 runs" in result.stderr and f"{run.id[:8]}  kept" in result.stdout
