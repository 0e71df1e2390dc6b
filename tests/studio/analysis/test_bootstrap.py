"""The bootstrap: intervals that have the size of chance, and macro-F1 as scikit-learn computes it."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from studio.analysis.bootstrap import RESAMPLES, Resamples, interval


def test_the_interval_is_as_wide_as_theory_says():
    right = np.arange(400) % 4 != 0  # for 75 %
    low, high = interval(Resamples(400).mean(right))
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.25 * 0.75 / 400), rel=0.1) and low < 0.75 < high


def test_equal_systems_do_not_differ():
    right, resamples = np.array([True, False, True]), Resamples(3)
    assert interval(resamples.mean(right) - resamples.mean(right)) == (0, 0)


def test_macro_f1_of_a_resample_is_that_of_its_rows():
    rng = np.random.default_rng(1)
    true, found = rng.random((30, 4)) < 0.3, rng.random((30, 4)) < 0.3
    true[:, 3] = found[:, 3] = False  # a label that never occurs is left out
    resamples = Resamples(30)
    macro = resamples.macro_f1(true, found)
    for number in (0, 7, RESAMPLES - 1):
        drawn = np.repeat(np.arange(30), resamples.weights[number].astype(int))
        assert macro[number] == pytest.approx(f1_score(true[drawn][:, :3], found[drawn][:, :3], average="macro"))
