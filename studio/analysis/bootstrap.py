"""Paired bootstrap: whether two systems differ on the same rows by more than chance.

difference, low, high = paired_difference(right_of_one, right_of_other)      # with a 95 % interval
"""

from __future__ import annotations

import numpy as np

RESAMPLES = 1000
SEED = 0


def paired_difference(ours: np.ndarray, others: np.ndarray) -> tuple[float, float, float]:
    """Return the difference of two means over the same rows, and the bounds of its 95 % interval.

    Args:
        ours, others: `[T]`, how good each system is on each row.
    """
    differences = np.asarray(ours, np.float64) - np.asarray(others, np.float64)
    rng = np.random.default_rng(SEED)
    means = [differences[rng.integers(len(differences), size=len(differences))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(differences.mean()), float(low), float(high)
