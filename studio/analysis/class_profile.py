"""Find the experts that fire more for the texts of one class than for those of all others.

    profile = ClassProfile(("ham", "spam"))
    profile.add(counts, class_ids)              # assignments of each text, int [T, L, N, E], and its class
    profile.entries()[0].difference             # of shares; `low` and `high` are its confidence interval

A text counts once, however long it is, because the tokens of one text are not independent observations. T texts,
C classes; the other letters are declared in `jetmoe/routing.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
FEWEST_TEXTS = 8
"""Minimum texts of a class, and of all others; an interval over fewer is meaningless."""


@dataclass(frozen=True)
class Entry:
    label: str
    layer: int
    kind: int
    """Index of the router in its layer."""
    expert: int
    share: float
    """Share of the router's assignments in texts of the class, averaged over texts."""
    others: float
    """The same share in the texts of all other classes."""
    low: float
    high: float
    """Confidence interval of their difference, at a level of 95 % for all comparisons together."""
    count: int
    """Assignments to the expert in texts of the class."""

    @property
    def difference(self) -> float:
        return self.share - self.others


class ClassProfile:
    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self.texts = np.zeros(len(labels), np.int64)  # [C]
        self._sums: np.ndarray | None = None  # [3, C, L, N, E]: shares, their squares, assignments

    def add(self, counts: np.ndarray, class_ids: np.ndarray) -> None:
        """Add texts: their assignments `[T, L, N, E]`, at least one per text, and their classes `[T]`."""
        shares = counts / counts.sum(axis=-1, keepdims=True)  # [T, L, N, E]
        if self._sums is None:
            self._sums = np.zeros((3, len(self.labels), *counts.shape[1:]))
        np.add.at(self.texts, class_ids, 1)
        for total, values in zip(self._sums, (shares, shares**2, counts), strict=True):
            np.add.at(total, class_ids, values)

    @property
    def comparisons(self) -> int:
        """Number of comparisons: one per expert and class with enough texts."""
        return 0 if self._sums is None else len(self._compared()) * int(np.prod(self._sums.shape[2:]))

    def entries(self, most: int = 20) -> list[Entry]:
        """Return the experts that fire significantly more, at most `most` per class, the largest difference first.

        The intervals are Welch's, with Bonferroni correction for all comparisons.
        """
        return [entry for class_id in self._compared() for entry in self._of_class(class_id, most)]

    def _compared(self) -> list[int]:
        others = self.texts.sum() - self.texts  # [C]
        return [i for i in range(len(self.labels)) if min(self.texts[i], others[i]) >= FEWEST_TEXTS]

    def _of_class(self, class_id: int, most: int) -> list[Entry]:
        from scipy.stats import t

        assert self._sums is not None
        own, n = self._sums[:, class_id], self.texts[class_id]  # [3, L, N, E]
        other, m = self._sums.sum(axis=1) - own, self.texts.sum() - n
        (share, error), (others, other_error) = _mean_and_error(own, n), _mean_and_error(other, m)  # [L, N, E]
        both = error + other_error
        with np.errstate(invalid="ignore", divide="ignore"):
            freedom = both**2 / (error**2 / (n - 1) + other_error**2 / (m - 1))
        margin = t.ppf(1 - (1 - LEVEL) / 2 / self.comparisons, freedom) * np.sqrt(both)  # NaN where nothing varies
        low, high = share - others - margin, share - others + margin
        found = np.argwhere(low > 0)  # [F, 3]
        found = found[np.argsort(-(share - others)[tuple(found.T)], kind="stable")][:most]
        return [
            Entry(
                self.labels[class_id],
                layer,
                kind,
                expert,
                share=float(share[layer, kind, expert]),
                others=float(others[layer, kind, expert]),
                low=float(low[layer, kind, expert]),
                high=float(high[layer, kind, expert]),
                count=int(own[2][layer, kind, expert]),
            )
            for layer, kind, expert in found.tolist()
        ]


def _mean_and_error(sums: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of the shares and its squared standard error."""
    mean = sums[0] / count
    variance = np.maximum(sums[1] - count * mean**2, 0) / (count - 1)
    return mean, variance / count
