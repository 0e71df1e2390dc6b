"""Training of classification heads on a toy JetMoE: runs from start to end, resume, several processes, bad input."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from jetmoe import JetMoeForCausalLM
from studio.backend.classification import evaluation
from studio.backend.classification.trained import TrainedClassifier
from studio.backend.recipe import Recipe
from studio.backend.runs.run import DATA
from studio.backend.runs.store import RunStore
from studio.backend.training import audit, head_trainer
from studio.backend.training import run as train
from studio.backend.training.checkpoint import last_checkpoint
from studio.backend.training.prepare import prepare
from studio.cli.main import app
from studio.errors import StudioError
from tests.builders.toy_labels import classifier_settings, labelled_file
from tests.builders.training import losses, recipe_file, started, values

ROOT = Path(__file__).parents[4]


@pytest.fixture(autouse=True)
def settings(tmp_path, monkeypatch) -> dict:
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    return classifier_settings(tmp_path)


# --- a run from start to end


def test_a_head_learns_and_tells_about_it(settings):
    run = started(settings, max_steps=24, eval_steps=8, save_steps=8)
    assert run.state == "done" and not values(run, "sample") and not values(run, "warning")
    evaluations = values(run, "eval")
    assert len(evaluations) == len(values(run, "routing")) == 4
    assert evaluations[-1]["eval_accuracy"] > 0.9 and evaluations[-1]["eval_macro_f1"] > 0.9
    best = max(each["eval_macro_f1"] for each in evaluations[1:])
    assert f"the best held-out macro-F1 is {best:.3f}" in run.message
    assert run.best_eval_loss == min(each["eval_loss"] for each in evaluations[1:])
    assert values(run, "routing")[-1]["js"] > 0
    report = json.loads((run.folder / DATA).read_text())
    assert report["problem"] == "single_label" and sum(report["labels"].values()) == report["train_rows"] == 48
    config = json.loads((run.adapter / "config.json").read_text())
    assert config["id2label"] == {"0": "ham", "1": "spam"} and config["pad_token_id"] == 256


def test_the_finished_head_is_measured_beside_plain_methods(settings):
    run = started(settings, max_steps=24, eval_steps=8, save_steps=8)
    report = evaluation.of_run(run)
    assert report["of"] == "16 held-out rows of rows.jsonl" and report["rows"] == np.sum(report["confusion"]) == 16
    best = max(each["eval_macro_f1"] for each in values(run, "eval")[1:])
    assert report["systems"][0]["macro_f1"] == pytest.approx(best)  # of the best checkpoint, not of the last
    systems = [evaluation.OURS, evaluation.FITTED, evaluation.BOTH, evaluation.TFIDF, evaluation.MAJORITY]
    assert [row["name"] for row in report["systems"]] == systems
    assert [point["rows"] for point in report["learning_curve"]] == [48]
    assert report["profile"]["texts"] == 16 and report["profile"]["comparisons"] == 2 * 2 * 2 * 4
    assert report["temperature"] is None  # of so few rows
    classifier = TrainedClassifier.load(run.id)
    held_out = prepare(run.recipe()).data.measured
    found = classifier.predict(held_out.texts).probabilities.argmax(-1)
    assert (found == held_out.targets).mean() == pytest.approx(report["systems"][0]["accuracy"])


def test_a_temperature_is_kept_with_the_adapter_and_used(settings, monkeypatch):
    temperature = 1.7
    found = {"value": temperature, "ece_before": 0.2, "ece_after": 0.1}
    monkeypatch.setattr(evaluation, "_temperature", lambda scores, true: found)
    run = started(settings)
    assert evaluation.of_run(run)["temperature"] == found
    classifier = TrainedClassifier.load(run.id)
    assert classifier.labels.temperature == pytest.approx(temperature) != 1
    scaled = classifier.predict(["tea walk"]).probabilities
    classifier.labels = replace(classifier.labels, temperature=1.0)
    plain = classifier.predict(["tea walk"]).probabilities
    assert np.log(scaled[0, 0] / scaled[0, 1]) == pytest.approx(
        np.log(plain[0, 0] / plain[0, 1]) / temperature, rel=1e-4
    )


def test_a_run_that_ended_before_it_was_measured_is_resumed_to_that(settings, monkeypatch):
    expected = evaluation.of_run(started(settings))
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "write", full_disk)
        with pytest.raises(StudioError, match="Free some space"):
            started(settings)
    (failed,) = [run for run in RunStore().list() if run.state == "failed"]
    assert evaluation.of_run(failed) is None and not failed.adapter.exists()
    resumed = train.resume(failed.id)
    assert evaluation.of_run(resumed) == expected and (resumed.adapter / "config.json").is_file()


def full_disk(report, run):
    raise StudioError("Free some space.")


def test_head_and_both_kinds_of_experts_get_gradients(settings):
    run = started(settings)
    audits = values(run, "audit")
    assert {part: counts["without_gradient"] for part, counts in audits[1]["gradients"].items()} == {
        "attention experts": 0,
        "MLP experts": 0,
        "kv_proj": 0,
        "score head": 0,
    }
    head = next(row for row in audits[0]["rows"] if row["part"] == "score head")
    assert head["trained"] == head["parameters"] == 2 * 64 and not audits[0]["warnings"]
    assert "base_model.model.score.weight" in load_file(run.adapter / "adapter_model.safetensors")


def test_the_audit_foresees_a_run(settings):
    ready = prepare(Recipe.from_settings(settings))
    report = audit.audit_report(ready)
    table = audit.table(report)
    assert "score head" in table and "single_label: ham (24), spam (24)" in table and "am⟧" in table
    assert report["forecast"]["memory_gib"] >= 0.7 and report["forecast"]["steps"] == 6
    assert ready.base.score.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("label", "changes", "figure"),
    [
        (lambda name, i: [name, "even"] if i % 4 < 2 else [name], {"problem": "multi_label"}, "eval_macro_f1"),
        (
            lambda name, i: {"ham": -1.0, "spam": 1.0}[name],
            {"problem": "regression", "learning_rate": 1e-2, "batch_size": 8},
            "eval_r2",
        ),
        (lambda name, i: name, {"class_weights": "balanced", "precision": "nf4"}, "eval_macro_f1"),
        (lambda name, i: name, {"gradient_checkpointing": True, "preset": "hot", "hot_share": 0.9}, "eval_macro_f1"),
    ],
)
def test_variants_learn_too(settings, label, changes, figure):
    labelled_file(Path(settings["data"]), label)
    run = started(settings, max_steps=24, eval_steps=12, save_steps=12, **changes)
    evaluations = values(run, "eval")
    assert max(each[figure] for each in evaluations[1:]) > (0.6 if changes.get("problem") == "multi_label" else 0.8)
    assert run.best_eval_loss < 0.7 * evaluations[0]["eval_loss"]
    assert ("loss" if changes.get("problem") == "regression" else "macro-F1") in run.message


def test_a_head_that_sees_large_numbers_takes_small_steps(settings):
    """As those of the starter are, whose last norm multiplies by eight and more."""
    model = JetMoeForCausalLM.from_pretrained(settings["model"])
    model.model.norm.weight.data.mul_(8)
    model.save_pretrained(settings["model"])
    ready = prepare(Recipe.from_settings(settings))
    assert float(ready.base.score.weight.std()) == pytest.approx(0.1 / 8, rel=0.2)
    run = started(settings, max_steps=24, eval_steps=8, save_steps=8)
    assert values(run, "eval")[-1]["eval_accuracy"] > 0.9
    state = torch.load(last_checkpoint(run) / "scheduler.pt")
    assert state["base_lrs"][-1] == pytest.approx(state["base_lrs"][0] / 8)


def test_accumulation_and_the_seed_change_nothing(settings):
    once = {**settings, "eval_steps": 6, "save_steps": 6}
    plain = losses(started(once))
    assert losses(started(once)) == plain
    assert losses(started(once, seed=1)) != plain
    accumulated = losses(started(once, batch_size=2, gradient_accumulation=2))
    assert accumulated == pytest.approx(plain, rel=1e-4)


def test_the_best_checkpoint_is_that_of_the_best_macro_f1(settings, monkeypatch):
    """However low the loss of another is; and training ends where it is not found again."""
    figures = iter([0.9, 0.5, 0.5, 0.5])
    monkeypatch.setattr(head_trainer, "measure", lambda *args: {"accuracy": 0.5, "macro_f1": next(figures)})
    run = started(settings, max_steps=40, early_stopping=2)
    assert run.step == 6 and "macro-F1 is 0.900" in run.message
    assert not values(run, "warning")
    name = "adapter_model.safetensors"
    best = load_file(run.checkpoints / "checkpoint-2" / name)
    assert all(torch.equal(tensor, best[key]) for key, tensor in load_file(run.adapter / name).items())


# --- resume, cancel, several processes


def test_a_cancelled_run_goes_on_exactly(settings, monkeypatch):
    """In the middle of an epoch, and of the order in which rows are drawn."""
    monkeypatch.setattr("studio.backend.training.callback.CANCEL_POLL_S", 0.0)
    undisturbed = started(settings, max_steps=16)
    store = RunStore()
    run = store.create(Recipe.from_settings({**settings, "max_steps": 16}))
    ended = train.carry_out(run.id, show=lambda event: event.step == 5 and store.request_cancel(run.id))
    assert ended.state == "cancelled" and 5 <= ended.step < 8 and last_checkpoint(run) is not None
    resumed = train.resume(run.id)
    assert losses(run) == losses(undisturbed)
    assert resumed.message == undisturbed.message and resumed.best_eval_loss == undisturbed.best_eval_loss
    name = "adapter_model.safetensors"
    ours, theirs = load_file(resumed.adapter / name), load_file(undisturbed.adapter / name)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


# --- what goes wrong, and the command line


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sample_prompts": ["Hi"]}, "leave out sample_prompts"),
        ({"balance_loss": 0.1}, "set balance_loss to 0"),
        ({"format": "alpaca"}, "set format to labelled or auto"),
        ({"task": "chat", "format": "labelled"}, "format=labelled is for classifiers"),
        ({"task": "chat", "problem": "regression"}, "problem and class_weights are for classifiers"),
        ({"problem": "regression", "class_weights": "balanced"}, "class_weights does not apply to regression"),
    ],
)
def test_settings_at_odds_are_refused(settings, changes, words):
    with pytest.raises(StudioError, match=words):
        Recipe.from_settings({**settings, **changes})


def test_bad_rows_and_labels_are_said_before_a_model_is_loaded(settings, monkeypatch):
    monkeypatch.setattr(
        "studio.backend.models.placement.load_model", lambda *args, **kwargs: pytest.fail("a model was loaded")
    )
    labelled_file(Path(settings["data"]), lambda name, i: "same")
    with pytest.raises(StudioError, match="Every row has the label 'same'"):
        started(settings)


def test_warnings_reach_the_audit(settings):
    with Path(settings["data"]).open("a") as file:
        file.write('\n{"text": "x", "label": null}\n{"text": "' + "long " * 30 + '", "label": "once"}\n')
    warnings = values(started(settings), "audit")[0]["warnings"]
    assert "1 bad rows were left out" in warnings[0] and "1 rows are longer than max_length=64" in warnings[1]
    assert warnings[2].startswith("Labels with a single text, which can't be evaluated: 'once'")


def test_command_line(settings, tmp_path):
    file = recipe_file({**settings, "task": "chat"}, tmp_path)
    shown = CliRunner().invoke(app, ["classify", "train", str(file), "max_steps=2", "--name", "mail"])
    assert shown.exit_code == 0
    (run,) = RunStore().list()
    assert run.name == "mail" and run.recipe().task == "classify"
    assert f"classify predict --adapter {run.id[:8]}" in shown.stdout
    assert "held-out loss" in shown.stderr and "macro-F1" in shown.stderr
    assert evaluation.TFIDF in shown.stdout and "true \\ found" in shown.stdout
    measured = CliRunner().invoke(app, ["classify", "evaluate", "--adapter", run.id[:8]])
    assert measured.stdout.strip() in shown.stdout
    both = CliRunner().invoke(app, ["classify", "predict", "--adapter", run.id[:8], "--labels", "a,b", "Hi"])
    assert "with fixed labels" in str(both.exception)
    dry = CliRunner().invoke(app, ["classify", "train", str(file), "--dry-run", "--json"])
    assert json.loads(dry.stdout)["data"]["labels"] == {"ham": 24, "spam": 24}
