"""Reports against rows counted by hand, for each kind of problem; files with labels; what can't be measured."""

import json

import numpy as np
import pytest
from torch import from_numpy

from studio.backend.classification import evaluation, file_evaluation
from studio.backend.classification.evaluation import (
    MAJORITY,
    MEAN,
    OURS,
    RIDGE,
    TFIDF,
    evaluate,
    plain_name,
    table,
)
from studio.backend.classification.file_evaluation import FileTest
from studio.backend.classification.head import probabilities
from studio.backend.classification.prediction import LabelledRow, Prediction
from studio.backend.classification.tfidf import Tfidf
from studio.backend.data.labelled import Truth
from studio.errors import StudioError

NAMES = ("ham", "spam")
TEXTS = ["tea at home", "win cash now", "book and tea", "cash cash", "a walk"]
TARGETS = [0, 1, 0, 1, 0]
SCORES = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6], [0.6, 0.4]])
LEARNED = Truth("single_label", NAMES, ["tea book walk"] * 3 + ["win cash"] * 2, [0, 0, 0, 1, 1])


def measured(truth, scores, of, learned):
    """The report beside TF-IDF, as a run makes it."""
    found = probabilities(truth.problem, from_numpy(Tfidf.fit(learned).logits(truth.texts)))
    return evaluate(truth, scores, of, learned, {plain_name(truth.problem): found.numpy()})


def by_name(report):
    return {row["name"]: row for row in report["systems"]}


def test_a_single_label_is_measured_beside_plain_methods_on_the_same_rows():
    report = measured(Truth("single_label", NAMES, TEXTS, TARGETS), SCORES, "5 rows", LEARNED)
    systems = by_name(report)
    assert [*systems] == [OURS, TFIDF, MAJORITY]
    assert systems[OURS]["accuracy"] == 0.8 and systems[TFIDF]["accuracy"] == 1 and systems[MAJORITY]["accuracy"] == 0.6
    assert systems[OURS]["auc"] == pytest.approx(5 / 6) and systems[MAJORITY]["auc"] is None
    assert report["confusion"] == [[2, 1], [0, 2]]
    assert report["texts"][0] == {"text": "book and tea", "true": 0, "found": 1, "confidence": 0.7}
    assert len(report["texts"]) == 5 and report["texts_left_out"] == 0 and report["temperature"] is None
    ham, _ = report["classes"]
    assert (ham["precision"], ham["recall"], ham["support"]) == (1, pytest.approx(2 / 3), 3)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert sum(report["reliability"]["counts"]) == 5
    row, _ = report["differences"]
    by = systems[OURS]["macro_f1"] - systems[TFIDF]["macro_f1"]
    assert row["better_than"] == TFIDF and row["by"] == by < 0 and row["from"] <= by <= row["to"]
    assert report["compared_by"] == "macro_f1" and "5 rows are few" in report["notices"][-1]
    assert all(each["macro_f1_low"] <= each["macro_f1"] <= each["macro_f1_high"] for each in report["systems"])


def test_other_classifiers_are_measured_on_the_same_rows():
    truth = Truth("single_label", NAMES, TEXTS, TARGETS)
    report = evaluate(truth, SCORES, "5 rows", LEARNED, {"Another": np.eye(2)[[0, 1, 1, 1, 0]]})
    assert [*by_name(report)] == [OURS, "Another", MAJORITY]
    assert by_name(report)["Another"]["accuracy"] == 0.8 and report["differences"][0]["by"] == 0
    assert "better than" in table(report)


def test_baselines_learn_from_nothing_but_the_rows_for_training():
    """The majority of what was learned from counts, not that of what is measured."""
    learned = LEARNED._replace(targets=[1, 1, 1, 1, 0])
    report = evaluate(Truth("single_label", NAMES, TEXTS, TARGETS), SCORES, "", learned)
    assert by_name(report)[MAJORITY]["accuracy"] == 0.4


def test_a_temperature_lowers_the_error_of_confidences_that_are_too_sure():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 2, 400)
    right = rng.random(400) < 0.7
    sure = np.where(right == (true == 1), 0.99, 0.01)  # of spam: always sure, right in 70 %
    report = evaluate(
        Truth("single_label", NAMES, ["x"] * 400, true.tolist()), np.stack([1 - sure, sure], axis=-1), "400 rows"
    )
    temperature = report["temperature"]
    assert temperature["ece_before"] == pytest.approx(0.29, abs=0.05) and temperature["ece_after"] < 0.06
    assert temperature["value"] == pytest.approx(np.log(99) / np.log(right.mean() / (1 - right.mean())), rel=0.01)
    assert "ECE" in table(report)


def test_wrong_texts_come_first_and_alike_ones_are_left_out():
    count = 300
    scores = np.tile([0.9, 0.1], (count, 1))
    report = evaluate(Truth("single_label", NAMES, ["x" * 900] * count, [0] * 290 + [1] * 10), scores, "")
    assert [each["true"] for each in report["texts"][:10]] == [1] * 10
    assert len(report["texts"]) == 10 + evaluation.MOST_ALIKE and report["texts_left_out"] == 240
    assert len(report["texts"][0]["text"]) == evaluation.SHOWN_TEXT


def test_several_labels_are_right_together():
    truth = Truth("multi_label", ("a", "b"), ["one", "two", "both", "none"], [(0,), (1,), (0, 1), ()])
    scores = np.array([[0.9, 0.2], [0.1, 0.8], [0.9, 0.3], [0.2, 0.1]])
    learned = Truth("multi_label", ("a", "b"), ["one both", "two both", "none"], [(0,), (1,), ()])
    report = measured(truth, scores, "4 rows", learned)
    ours = by_name(report)[OURS]
    assert ours["accuracy"] == 0.75 and ours["micro_f1"] == pytest.approx(2 * 3 / (2 * 3 + 1))
    assert "confusion" not in report and report["texts"][0]["true"] == [0, 1] and report["texts"][0]["found"] == [0]
    assert report["classes"][1]["recall"] == 0.5 and report["classes"][0]["auc"] == 1
    assert TFIDF in by_name(report) and table(report)


def test_numbers_have_errors():
    truth = Truth("regression", ("stars",), ["bad", "fine", "good"], [1.0, 2.0, 4.0])
    learned = Truth("regression", ("stars",), ["bad", "good"], [1.0, 5.0])
    report = measured(truth, np.array([[1.0], [2.5], [3.0]]), "3 rows", learned)
    systems = by_name(report)
    assert systems[OURS]["mean_absolute_error"] == pytest.approx(0.5) and systems[RIDGE]["rmse"] > 0
    assert systems[MEAN]["mean_absolute_error"] == pytest.approx((2 + 1 + 1) / 3)
    assert [each["true"] for each in report["texts"]] == [4.0, 2.0, 1.0] and "classes" not in report
    assert "mean absolute error" in table(report)


# --- files


def row(line, label, scores=(0.9, 0.1), text="tea"):
    found = dict(zip(NAMES, scores, strict=True))
    prediction = Prediction(text, max(found, key=found.__getitem__), max(scores), found)
    return LabelledRow(line, {"text": text, "kind": label}, prediction)


def test_a_file_is_measured_by_its_column_and_says_what_it_left_out():
    test = FileTest("single_label", NAMES, "kind")
    rows = [row(2, "ham"), row(3, " spam "), row(4, "spam", (0.1, 0.9)), row(5, "eggs"), row(6, ""), row(7, None)]
    for each in [*rows, LabelledRow(8, {}, None)]:
        test.add(each)
    report = test.report("mails.csv")
    assert report["of"] == "3 rows of mails.csv" and report["confusion"] == [[1, 0], [1, 1]]
    assert "does not have: 1, most often 'eggs'" in report["notices"][0]
    assert "without a readable label: 2. The first: line 6, column 'kind'" in report["notices"][1]


def test_numbers_as_labels_are_compared_as_they_were_learned():
    test = FileTest("single_label", ("1", "2"), "kind")
    for line, cell in ((2, 1), (3, 2.0), (4, "2")):
        found = {"1": 0.2, "2": 0.8}
        test.add(LabelledRow(line, {"kind": cell}, Prediction("x", "2", 0.8, found)))
    assert by_name(test.report("f"))[OURS]["accuracy"] == pytest.approx(2 / 3)


def test_labels_joined_by_commas_are_split_unless_the_classifier_has_them():
    names = ("a", "b", "c, d")
    test = FileTest("multi_label", names, "kind")
    for line, cell in enumerate(("a,b", "c, d", "b; a", ["a, b"], "a,x"), start=2):
        test.add(LabelledRow(line, {"kind": cell}, Prediction("x", "a", 0.8, dict.fromkeys(names, 0.2))))
    assert test.targets == [(0, 1), (2,), (0, 1), (0, 1)] and test.unknown == {"x": 1}


@pytest.mark.parametrize(("cells", "words"), [
    (["eggs", "eggs", "toast"], "no row of 'kind' has a label of the classifier; 2 have 'eggs'.*'ham'"),
    ([None], "no row has a true label in 'kind'; line 2 is empty"),
    ([], "no row has a true label in 'kind'"),
])  # fmt: skip
def test_a_file_that_says_nothing_is_refused_with_what_to_do(cells, words):
    test = FileTest("single_label", NAMES, "kind")
    for line, cell in enumerate(cells, start=2):
        test.add(row(line, cell))
    with pytest.raises(StudioError, match=f"(?i){words}"):
        test.report("mails.csv")


def test_memory_does_not_grow_with_a_file(monkeypatch):
    monkeypatch.setattr(file_evaluation, "MOST_ROWS", 3)
    test = FileTest("single_label", NAMES, "kind")
    for line in range(10):
        test.add(row(line, "ham"))
        test.add(row(line, None))  # has no label, so it isn't among those that are left out
    assert len(test.texts) == 3 and len(test.bad) == 2 and "7 are left out" in " ".join(test.report("f")["notices"])
