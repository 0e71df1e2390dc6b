"""The paired bootstrap: an interval that has the size of chance, and ends where a difference is real."""

import numpy as np
import pytest

from studio.analysis.bootstrap import paired_difference


def test_the_interval_is_as_wide_as_theory_says():
    ours = np.arange(400) % 4 != 0  # right for 75 %
    difference, low, high = paired_difference(ours, np.ones(400))
    assert difference == -0.25
    width = 2 * 1.96 * np.sqrt(0.25 * 0.75 / 400)
    assert high - low == pytest.approx(width, rel=0.1) and low < difference < high < 0


def test_equal_systems_do_not_differ():
    rights = np.array([True, False, True])
    assert paired_difference(rights, rights) == (0, 0, 0)
