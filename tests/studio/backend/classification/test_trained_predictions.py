"""A trained head's answers as predictions: one label, several, and a number."""

import json
import math
import threading

import numpy as np
import pytest

from studio.backend.classification import trained_predictions
from studio.backend.classification.files import predict_file
from studio.backend.classification.trained import TrainedClassifier
from studio.backend.classification.trained_predictions import TrainedHead
from tests.builders.toy_folder import classifier_folder

TEXTS = ["Win cash now.", "Tea?", "A walk with a book and some tea."]


def head_of(tmp_path, labels=("ham", "spam", "news"), problem="single_label_classification") -> TrainedHead:
    folder = classifier_folder(tmp_path / "head", list(labels), problem)
    return TrainedHead(TrainedClassifier.load(folder, precision="fp32"))


def test_one_label_is_the_likeliest(tmp_path):
    head = head_of(tmp_path)
    predictions = list(head.predict(TEXTS))
    found = head.classifier.predict(TEXTS)
    assert [prediction.text for prediction in predictions] == TEXTS and head.labels == ("ham", "spam", "news")
    for prediction, row in zip(predictions, found.probabilities, strict=True):
        assert np.allclose(list(prediction.scores.values()), row) and sum(row) == pytest.approx(1)
        assert prediction.label == head.labels[row.argmax()] and prediction.confidence == pytest.approx(row.max())


def test_of_several_labels_all_that_apply_are_named(tmp_path):
    for prediction in head_of(tmp_path, problem="multi_label_classification").predict(TEXTS):
        applies = [name for name, score in prediction.scores.items() if score >= 0.5]
        assert prediction.label == ", ".join(applies) and prediction.confidence == max(prediction.scores.values())


def test_a_number_has_no_confidence_and_its_file_stays_json(tmp_path):
    head = head_of(tmp_path, ("stars",), "regression")
    (prediction,) = head.predict(TEXTS[:1])
    assert float(prediction.label) == pytest.approx(prediction.scores["stars"], rel=1e-3)
    assert math.isnan(prediction.confidence) and prediction.row()["confidence"] is None
    (tmp_path / "a.csv").write_text("text\nTea?\n")
    predict_file(tmp_path / "a.csv", head.predict, tmp_path / "out.jsonl", head.labels)
    row = json.loads((tmp_path / "out.jsonl").read_text(), parse_constant=pytest.fail)
    assert row["confidence"] is None and float(row["label"]) == pytest.approx(row["stars"], rel=1e-3)


def test_the_routing_of_a_text_is_that_of_its_tokens_and_changes_no_answer(tmp_path):
    head = head_of(tmp_path)
    plain = list(head.predict(TEXTS))
    for prediction, same in zip(head.predict(TEXTS, with_trace=True), plain, strict=True):
        assert "".join(prediction.trace.texts) == prediction.text and same.trace is None
        assert list(prediction.scores.values()) == pytest.approx(list(same.scores.values()), abs=1e-5)


def test_cancel_ends_it_between_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(trained_predictions, "BATCH", 1)
    cancel, done = threading.Event(), []
    for prediction in head_of(tmp_path).predict(TEXTS, cancel):
        done.append(prediction)
        if len(done) == 2:
            cancel.set()
    assert len(done) == 2
