"""Whether a run fits into the memory of a CPU, before its first step."""

from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from studio.backend.recipe import Recipe
from studio.backend.runs.store import RunStore
from studio.backend.system import plan
from studio.backend.training import audit, cpu_memory
from studio.backend.training.prepare import prepare
from studio.cli.main import app
from studio.errors import StudioError
from tests.builders.toy_labels import classifier_settings
from tests.builders.training import recipe_file, started, training_settings

SENTENCE = "A step of this run needs about .* GiB of memory, and .* GiB are free: lower batch_size or max_length"


@pytest.fixture(autouse=True)
def settings(tmp_path, monkeypatch) -> dict:
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    return training_settings(tmp_path) | {"batch_size": 4, "packing": False}


def saved_by_a_batch(settings: dict, **changes) -> float:
    return cpu_memory._saved_by_batch(prepare(Recipe.from_settings(settings | changes)))


@pytest.mark.parametrize("is_classifier", [False, True])
def test_what_a_batch_saves_is_foreseen_from_a_few_tokens(settings, tmp_path, monkeypatch, is_classifier):
    monkeypatch.setattr(cpu_memory, "SAMPLE_TOKENS", 12)
    settings = settings if not is_classifier else classifier_settings(tmp_path) | {"batch_size": 4}
    ready = prepare(Recipe.from_settings(settings))
    longest = sorted(ready.data.train, key=lambda row: -len(row[0] if is_classifier else row[0][0]))[:4]
    with cpu_memory.Saved() as saved:
        _loss = ready.loss(ready.collate(longest))
    assert cpu_memory._saved_by_batch(ready) == pytest.approx(saved.bytes, rel=0.2)


def test_checkpointing_saves_the_inputs_of_all_layers_and_what_is_in_one(settings):
    whole, inputs_and_one = saved_by_a_batch(settings), saved_by_a_batch(settings, gradient_checkpointing=True)
    assert whole / 2 < inputs_and_one < whole, "of two layers"


def test_a_run_that_does_not_fit_is_refused_before_its_first_step(settings, tmp_path, monkeypatch):
    ready = prepare(Recipe.from_settings(settings))
    cpu_memory.require_memory(ready)
    monkeypatch.setattr(audit, "_trial", lambda prepared: pytest.fail("whole steps were tried"))
    # The toy fits, but not a thousand of its rows at once.
    monkeypatch.setattr(cpu_memory, "plan", SimpleNamespace(available_memory=lambda: plan.GIB // 16))
    with pytest.raises(StudioError, match=SENTENCE):
        started(settings, batch_size=1000)
    (run,) = RunStore().list()
    assert run.state == "failed" and "set gradient_checkpointing" in run.message
    dry = CliRunner().invoke(app, ["train", str(recipe_file(settings, tmp_path)), "batch_size=1000", "--dry-run"])
    assert isinstance(dry.exception, StudioError) and "lower batch_size" in str(dry.exception)


def test_a_probe_has_no_steps(settings, tmp_path, monkeypatch):
    ready = prepare(Recipe.from_settings(classifier_settings(tmp_path) | {"method": "probe"}))
    monkeypatch.setattr(plan, "available_memory", lambda: 0)
    cpu_memory.require_memory(ready)
