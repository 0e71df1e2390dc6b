"""Heads that are fitted to features: as scikit-learn fits them, without a bias, and for every kind of label."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from studio.backend.classification.head_fit import fit_head, fit_heads
from studio.backend.data.labelled import Labels

ROWS, SIZE = 300, 24
THREE = Labels("single_label", ("a", "b", "c"))


@pytest.fixture
def features() -> Tensor:
    """As those of a language model: a large part in common, and directions of very different size."""
    torch.manual_seed(0)
    return 20 * torch.randn(SIZE) + torch.randn(ROWS, SIZE) * torch.logspace(-1, 1, SIZE)


def standard(features: Tensor) -> Tensor:
    return (features - features.mean(0)) / features.std(0)


def test_a_head_without_bias_is_as_good_as_logistic_regression_with_one(features):
    from sklearn.linear_model import LogisticRegression

    noise = torch.randn(ROWS, 3)
    targets = (standard(features) @ torch.randn(SIZE, 3) + noise + torch.tensor([0.0, 2.0, -2.0])).argmax(-1)
    head = fit_head(THREE, features[:200], targets[:200].tolist())
    found = (features[200:] @ head.T).argmax(-1)
    inputs = standard(features).numpy()
    other = LogisticRegression(C=0.1, max_iter=1000).fit(inputs[:200], targets[:200].numpy()).predict(inputs[200:])
    assert (found == targets[200:]).float().mean() >= (other == targets[200:].numpy()).mean() - 0.03 > 0.7


def test_numbers_far_from_zero_are_estimated(features):
    numbers = 5000 + 100 * standard(features) @ torch.randn(SIZE)
    labels = Labels("regression", ("n",))
    head = fit_head(labels, features[:200], numbers[:200].tolist())
    for fold in fit_heads(labels, features[:200], numbers[:200].tolist(), [200]).folds:
        assert (fold.logits.squeeze(-1) - numbers[fold.test]).square().mean() < 0.1 * numbers.var()
    error = (features[200:] @ head.T).squeeze(-1) - numbers[200:]
    assert error.square().mean() < 0.05 * numbers.var()


def test_labels_of_a_set_are_independent(features):
    has = standard(features)[:, -2:] > torch.tensor([0.0, 1.0])
    targets = [tuple(np.flatnonzero(row)) for row in has.numpy()]
    head = fit_head(Labels("multi_label", ("a", "b")), features[:200], targets[:200])
    found = features[200:] @ head.T > 0
    assert ((found == has[200:]).float().mean(0) > 0.85).all()


def test_balanced_weights_find_the_rare_label(features):
    targets = (standard(features)[:, -1] + 0.7 * torch.randn(ROWS) > 1.5).long()
    counts = tuple(torch.bincount(targets[:200]).tolist())
    recalls = []
    for weights in ("none", "balanced"):
        labels = Labels("single_label", ("often", "rare"), counts, weights, 200)
        head = fit_head(labels, features[:200], targets[:200].tolist())
        found = (features[200:] @ head.T).argmax(-1)
        recalls.append(float((found == 1)[targets[200:] == 1].float().mean()))
    assert recalls[1] > recalls[0]


@pytest.mark.usefixtures("two_threads")
def test_heads_of_fewer_rows_are_fitted_to_these_alone(features):
    targets = (standard(features) @ torch.randn(SIZE, 3)).argmax(-1)
    heads, folds = fit_heads(THREE, features[:200], targets[:200].tolist(), [50, 200])
    assert sorted(row for fold in folds for row in fold.test.tolist()) == [*range(200)]
    assert all({*fold.train.tolist()}.isdisjoint(fold.test.tolist()) for fold in folds)
    assert torch.get_num_threads() == 2, "one thread is used for the fit alone"
    alone = fit_heads(THREE, features[:200], targets[:200].tolist(), [50]).heads[50]
    np.testing.assert_allclose(features @ heads[50].T, features @ alone.T, atol=0.05)
    few, all_of_them = ((features[200:] @ heads[count].T).argmax(-1) == targets[200:] for count in (50, 200))
    assert few.float().mean() < all_of_them.float().mean()


@pytest.mark.parametrize("rows", [2, 5, 12])
def test_few_rows_are_enough(features, rows):
    features[:rows:2] += 3 * features.std(0)
    targets = [i % 2 for i in range(rows)]
    head = fit_head(Labels("single_label", ("a", "b")), features[:rows], targets)
    assert (features[:rows] @ head.T).argmax(-1).tolist() == targets


def test_features_that_are_all_the_same_give_the_shares():
    head = fit_head(THREE, torch.ones(40, SIZE), [0] * 20 + [1] * 10 + [2] * 10)
    np.testing.assert_allclose((torch.ones(1, SIZE) @ head.T).softmax(-1)[0], [0.5, 0.25, 0.25], atol=0.02)
