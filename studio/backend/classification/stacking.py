"""Weights of a head and of TF-IDF in the sum of their logits, from rows that neither was fitted to.

    head, words = fit_weights(labels, learned, fitted.folds)        # stacked generalization, Wolpert 1992

For one label a text, the sum is a weighted mean of log-probabilities: logits differ from these by a constant for each
text, which a softmax ignores.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from studio.backend.classification.head import head_loss
from studio.backend.classification.head_fit import Fold, as_tensor
from studio.backend.classification.tfidf import Tfidf
from studio.backend.data.labelled import Labels, Truth
from studio.errors import StudioError

USUAL = (0.5, 0.5)
"""With too few rows for a cross-validation."""
LEAST, MOST = 0.05, 5.0
"""Bounds of a weight: neither part is left out."""


def fit_weights(labels: Labels, learned: Truth, folds: Sequence[Fold], balanced: bool = False) -> tuple[float, float]:
    """Return the weights of the head and of TF-IDF with the lowest loss on the rows outside of each fold.

    Args:
        learned: the rows to which the head was fitted, in that order.
        folds: the cross-validation of the head.
    """
    if not folds:
        return USUAL
    try:
        words = [
            Tfidf.fit(learned.part(fold.train.tolist()), balanced).logits(learned.part(fold.test.tolist()).texts)
            for fold in folds
        ]
    except StudioError:  # a fold with one label, or without words
        return USUAL
    wanted = as_tensor(labels, [learned.targets[int(i)] for fold in folds for i in fold.test])
    head = torch.cat([fold.logits for fold in folds])
    return _lowest(labels, head, torch.from_numpy(np.concatenate(words)).float(), wanted)


def _lowest(labels: Labels, head: Tensor, words: Tensor, wanted: Tensor) -> tuple[float, float]:
    from scipy.optimize import minimize

    scale = float(wanted.double().square().mean()) if labels.problem == "regression" else 1.0

    def loss(weights: np.ndarray) -> float:
        return float(head_loss(labels, head * float(weights[0]) + words * float(weights[1]), wanted)) / (scale or 1.0)

    found = minimize(loss, USUAL, method="Nelder-Mead", bounds=[(LEAST, MOST)] * 2)  # without gradients, of two numbers
    return float(found.x[0]), float(found.x[1])
