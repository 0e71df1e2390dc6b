"""Measures against their definitions, counted by hand, and the sentences for what can't be measured."""

import numpy as np
import pytest

from studio.analysis.measures import (
    fit_temperature,
    majority_baseline,
    measure,
    nll,
    reliability,
    roc_auc,
)
from studio.errors import StudioError

LABELS = ("a", "b", "c")


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def test_rates_are_those_counted_by_hand():
    measures = measure(list("aaaabbc"), list("aaabbba"), LABELS)
    assert measures.accuracy == measures.micro_f1 == pytest.approx(5 / 7)
    a, b, c = measures.per_class
    assert (a.label, a.precision, a.recall, a.support) == ("a", 0.75, 0.75, 4)
    assert (b.precision, b.recall, b.support) == (pytest.approx(2 / 3), 1.0, 2)
    assert (c.precision, c.recall, c.f1, c.support) == (0, 0, 0, 1)
    assert measures.macro_f1 == pytest.approx((0.75 + 0.8 + 0) / 3)
    assert measures.confusion.tolist() == [[3, 1, 0], [0, 2, 0], [1, 0, 0]]


def test_classes_with_too_few_rows_get_a_sentence_and_do_not_count_in_the_mean():
    measures = measure(list("aab"), list("aab"), LABELS)
    assert measures.macro_f1 == 1.0
    assert "Labels without rows: 'c'" in measures.notices[0] and "only one row: 'b'" in measures.notices[1]
    assert not measure(list("aabbcc"), list("aabbcc"), LABELS).notices


def test_unknown_labels_are_named_with_what_to_do():
    for true, predicted in ((list("adda"), list("aaaa")), (list("aaaa"), list("adda"))):
        with pytest.raises(StudioError, match=r"'d', the label of 2 rows, is not one of the classes 'a', 'b', 'c'"):
            measure(true, predicted, LABELS)
    with pytest.raises(StudioError, match="no rows"):
        measure([], [], LABELS)


def test_auc_is_the_share_of_pairs_in_order():
    true = list("ababb")
    score = np.array([0.1, 0.4, 0.5, 0.5, 0.9])  # of b
    pairs = [(x > y) + (x == y) / 2 for x in score[[1, 3, 4]] for y in score[[0, 2]]]
    auc = roc_auc(true, np.stack([1 - score, score], axis=1), ("a", "b"))
    assert auc.macro == pytest.approx(np.mean(pairs)) and auc.per_class["a"] == pytest.approx(auc.per_class["b"])


def test_auc_of_many_classes_is_the_mean_over_those_that_have_one():
    probabilities = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    auc = roc_auc(list("abbb"), probabilities, LABELS)
    assert set(auc.per_class) == {"a", "b"} and auc.per_class["a"] == 1.0
    assert auc.macro == pytest.approx(np.mean(list(auc.per_class.values())))
    assert roc_auc(list("aaaa"), probabilities, LABELS).macro is None


def test_reliability_by_hand():
    confidence = np.array([0.55, 0.6, 0.95, 1.0, 0.0])
    correct = np.array([True, False, True, True, False])
    bins = reliability(confidence, correct, bins=10)
    assert bins.counts.tolist() == [1, 0, 0, 0, 0, 2, 0, 0, 0, 2]
    assert bins.accuracy[5] == 0.5 and bins.confidence[9] == pytest.approx(0.975)
    assert np.isnan(bins.accuracy[1]) and len(bins.edges) == 11
    assert bins.ece == pytest.approx((2 * abs(0.5 - 0.575) + 2 * abs(1 - 0.975)) / 5)
    assert reliability(np.array([0.5, 0.5]), np.array([True, False])).ece == 0


def test_temperature_undoes_a_scale():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 4)) * 2
    chances = softmax(logits).cumsum(axis=1)
    class_ids = (chances < rng.random((len(logits), 1))).sum(axis=1)
    for scale in (0.2, 1.0, 5.0):
        assert fit_temperature(logits * scale, class_ids) == pytest.approx(scale, rel=0.05)
    temperature = fit_temperature(logits * 5, class_ids)
    assert nll(logits * 5 / temperature, class_ids) < nll(logits * 5, class_ids)
    before, after = (softmax(each) for each in (logits * 5, logits * 5 / temperature))
    ece = [reliability(each.max(axis=1), each.argmax(axis=1) == class_ids).ece for each in (before, after)]
    assert ece[1] < 0.02 < 0.2 < ece[0]


def test_temperature_stays_within_bounds():
    logits = np.array([[5.0, 0.0], [0.0, 5.0]])
    assert 0.02 <= fit_temperature(logits, np.array([0, 1])) < 0.2
    assert 10 < fit_temperature(logits, np.array([1, 0])) <= 50
    with pytest.raises(StudioError, match="not all finite"):
        fit_temperature(np.array([[np.nan, 0.0]]), np.array([0]))


def test_majority_predicts_the_most_frequent_class_of_training():
    measures = majority_baseline(list("aabbb"), list("abab"))
    assert measures.accuracy == 0.5 and measures.per_class[1].recall == 1.0 and measures.per_class[0].recall == 0.0


def test_what_can_not_be_trained_is_said():
    with pytest.raises(StudioError, match="'c' has 2 rows to evaluate, but no training rows"):
        majority_baseline(["a", "b"], ["a", "c", "c"])
    with pytest.raises(StudioError, match="'c' has 1 row "):
        majority_baseline(["a", "b"], ["c"])
