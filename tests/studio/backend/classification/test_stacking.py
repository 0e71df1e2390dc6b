"""Weights of a head and of TF-IDF: the better part has more, and neither is left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from studio.backend.classification.head_fit import Fold
from studio.backend.classification.stacking import LEAST, USUAL, fit_weights
from studio.backend.data.labelled import Labels, Truth

WORDS = ("good", "bad")
ROWS = 90


def folds(logits):
    rows = torch.arange(ROWS)
    return [Fold(rows[rows % 3 != i], rows[rows % 3 == i], logits[rows % 3 == i]) for i in range(3)]


def weights(problem, tells, knows):
    """Of texts whose words tell the target or not, and of a head that knows it or not."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, ROWS)
    other = rng.integers(0, 2, ROWS)
    texts = [f"{WORDS[(truth if tells else other)[i]]} {i}" for i in range(ROWS)]
    seen = torch.tensor(truth if knows else rng.integers(0, 2, ROWS)).float()
    if problem == "regression":
        names, logits, targets = ("n",), 100 * seen[:, None] + 500, [500.0 + 100 * i for i in truth]
    else:
        logits = torch.stack([3 * (1 - seen), 3 * seen], dim=-1) + torch.randn(ROWS, 2)
        logits = logits - 1.5 if problem == "multi_label" else logits
        names, targets = WORDS, [int(i) if problem == "single_label" else (int(i),) for i in truth]
    return fit_weights(Labels(problem, names), Truth(problem, names, texts, targets), folds(logits))


@pytest.mark.parametrize("problem", ["single_label", "multi_label", "regression"])
def test_the_part_that_tells_more_has_more_weight(problem):
    head, words = weights(problem, tells=False, knows=True)
    assert head > words >= LEAST
    head, words = weights(problem, tells=True, knows=False)
    assert words > head >= LEAST


def test_too_few_rows_have_equal_weights():
    labels, rows = Labels("single_label", WORDS), Truth("single_label", WORDS, ["good", "bad"], [0, 1])
    assert fit_weights(labels, rows, []) == USUAL
    one = Fold(torch.tensor([0]), torch.tensor([1]), torch.zeros(1, 2))
    assert fit_weights(labels, rows, [one]) == USUAL, "a fold has one label"
