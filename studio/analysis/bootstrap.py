"""Bootstrap: how much a figure of some rows would vary by chance, and whether two systems differ by more than that.

    resamples = Resamples(len(rows))                # the same random rows for all systems
    ours, others = resamples.macro_f1(true, found), resamples.macro_f1(true, found_by_another)     # [R] each
    low, high = interval(ours)                      # 95 %
    low, high = interval(ours - others)             # paired

R resamples, T rows, C labels.
"""

from __future__ import annotations

import numpy as np

RESAMPLES = 1000
SEED = 0


class Resamples:
    """Rows drawn with replacement, as many as there are; only how often each is drawn matters."""

    def __init__(self, rows: int) -> None:
        rng = np.random.default_rng(SEED)
        drawn = [np.bincount(rng.integers(rows, size=rows), minlength=rows) for _ in range(RESAMPLES)]
        self.weights = np.array(drawn, np.float32)  # [R, T]

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Return the mean of values `[T]` in each resample, float64 `[R]`."""
        means: np.ndarray = self.weights @ np.asarray(values, np.float64) / self.weights.shape[1]
        return means

    def macro_f1(self, true: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Return macro-F1 in each resample, float64 `[R]`: the mean over the labels that occur or are found in it.

        Args:
            true, found: the labels of each row, bool `[T, C]`.
        """
        hits, all_true, all_found = (self._counts(each) for each in (true & found, true, found))  # [R, C]
        either = all_true + all_found
        f1 = 2 * hits / np.maximum(either, 1)
        macro: np.ndarray = f1.sum(axis=-1) / np.maximum((either > 0).sum(axis=-1), 1)
        return macro

    def _counts(self, sets: np.ndarray) -> np.ndarray:
        from scipy.sparse import csr_array

        counts: np.ndarray = self.weights.astype(np.float64) @ csr_array(sets, dtype=np.float64)
        return counts


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the bounds between which 95 % of the values are."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
