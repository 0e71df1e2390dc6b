"""Runs that fit a head to the frozen model: probes, the start of LoRA, interruptions, and what is saved."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from studio.backend.adapters.checksums import CHECKSUMS
from studio.backend.classification import evaluation, features
from studio.backend.classification.tfidf import VOCABULARY, WEIGHTS
from studio.backend.classification.trained import TrainedClassifier
from studio.backend.export import hub
from studio.backend.export.export import export
from studio.backend.recipe import Recipe
from studio.backend.runs.run import Run
from studio.backend.runs.store import RunStore
from studio.backend.training import run as train
from studio.backend.training.fitted_head import FEATURES, FittedHead
from studio.backend.training.prepare import prepare
from studio.errors import StudioError
from tests.builders.toy_labels import classifier_settings, labelled_file
from tests.builders.training import started, values

PROMPT = "Mail: {text}\nKind:"


@pytest.fixture(autouse=True)
def settings(tmp_path, monkeypatch) -> dict:
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    return classifier_settings(tmp_path)


def weights(run: Run) -> dict:
    return load_file(run.adapter / "adapter_model.safetensors")


def test_a_probe_is_a_classifier_with_its_prompt(settings, tmp_path):
    run = started(settings, method="probe", prompt=PROMPT)
    assert run.state == "done" and "without training steps" in run.message and not (run.folder / FEATURES).exists()
    (measured,) = values(run, "eval")
    assert measured["eval_macro_f1"] > 0.9 and run.best_eval_loss == measured["eval_loss"]
    assert not any(tensor.any() for name, tensor in weights(run).items() if "lora_B" in name)
    report = evaluation.of_run(run)
    assert report["systems"][0]["macro_f1"] == pytest.approx(measured["eval_macro_f1"])
    held_out = prepare(run.recipe()).data.measured
    classifier = TrainedClassifier.load(run.id)
    found = classifier.predict(held_out.texts).probabilities.argmax(-1)
    assert (found == held_out.targets).mean() == pytest.approx(report["systems"][0]["accuracy"])
    merged = TrainedClassifier.load(export(run.id, tmp_path / "merged", merge=True).folder, precision="fp32")
    assert merged.labels.prompt == classifier.labels.prompt == PROMPT
    expected = classifier.predict(held_out.texts).probabilities
    np.testing.assert_allclose(merged.predict(held_out.texts).probabilities, expected, atol=0.02)  # merged in bf16


def test_a_classifier_of_an_earlier_version_has_no_prompt(settings):
    run = started(settings, method="probe")
    file = run.adapter / "config.json"
    config = json.loads(file.read_text())
    assert config.pop("score_prompt") == "{text}"
    before = TrainedClassifier.load(run.id).predict(["tea walk"]).probabilities
    file.write_text(json.dumps(config))
    (run.adapter / CHECKSUMS).unlink()
    np.testing.assert_array_equal(TrainedClassifier.load(run.id).predict(["tea walk"]).probabilities, before)


@pytest.mark.parametrize(
    ("label", "changes", "figure"),
    [
        (lambda name, i: [name, "even"] if i % 4 < 2 else [name], {"problem": "multi_label"}, "eval_macro_f1"),
        (lambda name, i: {"ham": 100.0, "spam": 900.0}[name], {"problem": "regression"}, "eval_r2"),
        (lambda name, i: name, {"class_weights": "balanced", "eval_share": 0}, ""),
    ],
)
def test_probes_of_every_problem(settings, label, changes, figure):
    labelled_file(Path(settings["data"]), label)
    run = started(settings, method="probe", **changes)
    assert run.state == "done" and weights(run)
    assert [each[figure] > 0.4 for each in values(run, "eval")] == [True] * bool(figure)


@pytest.mark.parametrize(
    ("label", "changes"),
    [
        (lambda name, i: name, {}),
        (lambda name, i: [name, "even"] if i % 4 < 2 else [name], {"problem": "multi_label"}),
        (lambda name, i: {"ham": 1.0, "spam": 9.0}[name], {"problem": "regression", "eval_share": 0}),
    ],
)
def test_tfidf_is_a_part_of_the_classifier_wherever_it_goes(settings, label, changes, tmp_path):
    labelled_file(Path(settings["data"]), label)
    run = started(settings, method="probe", with_tfidf=True, **changes)
    classifier, texts = TrainedClassifier.load(run.id, precision="fp32"), ["tea walk", "win cash", "book 3"]
    found = classifier.predict(texts).probabilities
    words, classifier.words = classifier.words, None
    alone = classifier.predict(texts).probabilities
    if classifier.problem == "regression":
        np.testing.assert_allclose(found, words.head_weight * alone + words.logits(texts), rtol=1e-4)
    elif classifier.problem == "multi_label":
        logits, head = (np.log(each / (1 - each)) for each in (found, alone))
        np.testing.assert_allclose(logits, words.head_weight * head + words.logits(texts), atol=1e-3)
    exported = export(run.id, tmp_path / "exported").folder
    assert {WEIGHTS, VOCABULARY} <= {*hub.files(exported)} and "of the head alone" in hub.card(exported, "a/b")
    np.testing.assert_allclose(
        TrainedClassifier.load(exported, model=settings["model"], precision="fp32").predict(texts).probabilities,
        found,
        atol=1e-4,
    )
    merged = export(run.id, tmp_path / "merged", merge=True).folder
    assert {WEIGHTS, VOCABULARY} <= {*hub.files(merged)}
    np.testing.assert_allclose(
        TrainedClassifier.load(merged, precision="fp32").predict(texts).probabilities, found, rtol=0.1, atol=0.03
    )
    (run.adapter / WEIGHTS).unlink()
    with pytest.raises(StudioError, match="damaged"):
        TrainedClassifier.load(run.id)


def test_a_report_shows_the_parts_of_the_sum_and_the_sum_of_a_head_alone(settings):
    alone, mean = (evaluation.of_run(started(settings, method="probe", with_tfidf=each)) for each in (False, True))
    names = [[system["name"] for system in report["systems"]] for report in (alone, mean)]
    rest = [evaluation.TFIDF, evaluation.MAJORITY]
    assert names == [[evaluation.OURS, evaluation.BOTH, *rest], [evaluation.OURS, evaluation.ALONE, *rest]]
    assert [alone["systems"][i]["macro_f1"] for i in (0, 1)] == [mean["systems"][i]["macro_f1"] for i in (1, 0)]
    assert mean["trained"] == {"method": "probe", "with_tfidf": True}


def test_texts_without_words_have_no_tfidf(settings):
    rows = [{"text": "?!"[i % 2] * (1 + i // 2), "label": "ab"[i % 2]} for i in range(24)]
    Path(settings["data"]).write_text("\n".join(map(json.dumps, rows)))
    run = started(settings, method="probe", with_tfidf=True)
    assert "TF-IDF is left out: The training texts hold no words" in values(run, "warning")[-1]["message"]
    assert TrainedClassifier.load(run.id).words is None
    names = [system["name"] for system in evaluation.of_run(run)["systems"]]
    assert names == [evaluation.OURS, evaluation.MAJORITY]


@pytest.mark.parametrize("per_class", [8, 16, 32])
def test_few_rows_need_no_settings(settings, per_class):
    labelled_file(Path(settings["data"]), rows=2 * per_class)
    report = evaluation.of_run(run := started(settings, method="probe", with_tfidf=True))
    assert run.state == "done" and report["systems"][0]["macro_f1"] > 0.6
    assert f"{per_class // 2} rows are few" in " ".join(report["notices"])
    assert [point["rows"] for point in report["learning_curve"]] == ([48] if per_class == 32 else [per_class * 3 // 2])


def test_rows_longer_than_the_context_are_refused_before_they_are_read(settings):
    Path(settings["data"]).unlink()
    Path(settings["data"]).touch()
    with pytest.raises(StudioError, match=r"max_length is 513, but the context of .* has 512 tokens: set "):
        prepare(Recipe.from_settings({**settings, "max_length": 513}))


def test_lora_goes_on_from_the_fitted_head(settings):
    probe, tuned = started(settings, method="probe"), started(settings)
    first = values(tuned, "eval")[0]
    assert first == pytest.approx(values(probe, "eval")[0]) and len(values(tuned, "eval")) == 4
    assert any(tensor.any() for name, tensor in weights(tuned).items() if "lora_B" in name)
    chosen = ["also chose between the checkpoints" in str(evaluation.of_run(run)["notices"]) for run in (tuned, probe)]
    assert chosen == [True, False]


def test_lora_that_is_worse_than_the_head_is_left_out(settings, monkeypatch):
    monkeypatch.setattr(FittedHead, "is_better", lambda *args: True)
    probe, tuned = started(settings, method="probe"), started(settings)
    assert "the fitted head is kept" in values(tuned, "warning")[-1]["message"]
    head = "base_model.model.score.weight"
    assert weights(tuned)[head].equal(weights(probe)[head])
    assert not any(tensor.any() for name, tensor in weights(tuned).items() if "lora_B" in name)
    ours, theirs = (evaluation.of_run(run)["systems"][0] for run in (tuned, probe))
    assert ours == theirs


def test_a_run_that_is_cancelled_while_reading_resumes_with_what_was_read(settings, monkeypatch):
    monkeypatch.setattr(features, "BATCH_TOKENS", 64)
    for name in ("CANCEL_POLL_S", "READ_POLL_S"):
        monkeypatch.setattr(f"studio.backend.training.callback.{name}", 0.0)
    store = RunStore()
    run = store.create(Recipe.from_settings({**settings, "method": "probe"}))
    ended = train.carry_out(run.id, show=lambda event: event.kind == "reading" and store.request_cancel(run.id))
    (read,) = values(run, "reading")
    assert ended.state == "cancelled" and not run.adapter.exists() and 0 < read["done"] < read["rows"] == 64
    resumed = train.resume(run.id)
    again = values(run, "reading")[1:]
    assert resumed.state == "done" and again[0]["done"] > read["done"]
    assert weights(resumed).keys() == weights(undisturbed := started(settings, method="probe")).keys()
    assert all(tensor.allclose(weights(undisturbed)[name], atol=1e-5) for name, tensor in weights(resumed).items())
