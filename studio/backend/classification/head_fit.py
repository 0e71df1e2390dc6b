"""Fit a classification head to frozen features: logistic regression, or ridge regression for numbers.

    fitted = fit_heads(labels, features, targets, [100, 200])
    logits = features @ fitted.heads[200].T         # [N, C], of the head for the first 200 texts; features are [N, D]

The strength of the regularisation is chosen by cross-validation on all rows. The head has no bias, as in transformers.
The features of all texts have a large part in common, and a weight in its direction acts as a bias. Only differences of
the texts in that one direction are lost.

N rows, C labels, D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from studio.backend.classification.head import head_loss
from studio.backend.data.labelled import Labels, Target

# Weights of the squared norm of the head, against the mean loss of the rows. From the strongest, whose solution is the
# start for the next one.
STRENGTHS = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
USUAL_STRENGTH = 0.1
FOLDS = 3
FEWEST_ROWS = 8
"""With fewer rows, cross-validation says nothing."""
MOST_ROWS = 4000
"""Rows that the cross-validation reads at most."""
BIAS = 10.0
"""Scale of the bias, which is hardly regularised at this size."""
MOST_PRODUCTS = 2**26
"""Multiplications of a pass over all rows, up to which one thread is the fastest."""
TRIAL: dict[str, float] = {"maxiter": 25, "ftol": 1e-5}
FINAL: dict[str, float] = {"maxiter": 300, "ftol": 1e-8}
"""When the optimizer stops, for the cross-validation and for the head."""


class Fold(NamedTuple):
    train: Tensor
    """Indices of the rows that a head was fitted to."""
    test: Tensor
    """Indices of other rows."""
    logits: Tensor
    """Its logits for these, float32 `[test, C]`."""


class FittedHeads(NamedTuple):
    heads: dict[int, Tensor]
    """Weights float32 `[C, D]` by the number of rows."""
    folds: list[Fold]
    """Those of the cross-validation with the chosen strength; empty for fewer than FEWEST_ROWS rows."""


def fit_head(labels: Labels, features: Tensor, targets: Sequence[Target]) -> Tensor:
    """Return the weights float32 `[C, D]` of a head without bias, fitted to features `[N, D]`."""
    return fit_heads(labels, features, targets, [len(features)]).heads[len(features)]


def fit_heads(labels: Labels, features: Tensor, targets: Sequence[Target], counts: Sequence[int]) -> FittedHeads:
    """Return heads as of `fit_head` for the first rows.

    All have the same prior, so the regularisation of fewer rows is stronger in relation to their mean loss.
    """
    basis = _basis(features)  # [D, D + 1]
    scale = _Scale.of(labels, targets)
    inputs, wanted = features @ basis, scale.scaled(labels, targets)  # [N, D + 1], [N] or [N, C]
    heads: dict[int, Tensor] = {}
    with _few_threads(inputs.numel() * len(labels.names)):
        strength, weights, folds = _best_strength(labels, inputs, wanted)
        for count in sorted(counts, reverse=True):
            stronger = strength * len(inputs) / count
            weights = _solved(labels, inputs[:count], wanted[:count], stronger, FINAL, weights)  # [C, D + 1]
            heads[count] = scale.unscaled(weights) @ basis.T
    return FittedHeads(heads, [fold._replace(logits=scale.unscaled_logits(fold.logits)) for fold in folds])


@contextmanager
def _few_threads(products: int) -> Iterator[None]:
    """Use one thread for small matrices, where several spend most of their time waiting for each other."""
    threads = torch.get_num_threads()
    if products < MOST_PRODUCTS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def as_tensor(labels: Labels, targets: Sequence[Target]) -> Tensor:
    """Return the targets as `head_loss` takes them: `[N]`, or `[N, C]` for several labels a text."""
    if labels.problem != "multi_label":
        return torch.tensor(targets)
    hot = torch.zeros(len(targets), len(labels.names))
    for row, target in zip(hot, targets, strict=True):
        row[list(target)] = 1  # type: ignore[arg-type]
    return hot


def _basis(features: Tensor) -> Tensor:
    """Return `[D, D + 1]`, which maps features to standardized inputs without their common part, and the bias.

    Regression on these inputs converges in few steps, which on the features themselves takes thousands.
    """
    spread = features.std(dim=0)
    # Inputs that hardly vary would get weights without bounds.
    spread = spread.clamp(min=1e-3 * float(spread.mean() + features.abs().mean()) + 1e-12)
    common = (features / spread).mean(dim=0)  # [D]
    direction = common / common.square().sum().clamp(min=1e-12)  # [D]; its product with the inputs is about 1
    centred = torch.eye(len(common)) - direction[:, None] * common  # [D, D]
    return torch.cat([centred, BIAS * direction[:, None]], dim=1) / spread[:, None]


@dataclass(frozen=True)
class _Scale:
    """The mean and the standard deviation of a regression's numbers; no change for labels."""

    mean: float = 0.0
    spread: float = 1.0

    @classmethod
    def of(cls, labels: Labels, targets: Sequence[Target]) -> _Scale:
        if labels.problem != "regression":
            return cls()
        numbers = np.asarray(targets, np.float64)
        return cls(float(numbers.mean()), float(numbers.std()) or 1.0)

    def scaled(self, labels: Labels, targets: Sequence[Target]) -> Tensor:
        wanted = as_tensor(labels, targets)
        return wanted if labels.problem != "regression" else (wanted.double() - self.mean) / self.spread

    def unscaled_logits(self, logits: Tensor) -> Tensor:
        return logits * self.spread + self.mean

    def unscaled(self, weights: Tensor) -> Tensor:
        """Return the weights `[C, D + 1]` for the targets as they were."""
        bias = torch.zeros(weights.shape[-1])
        bias[-1] = self.mean / BIAS
        return weights * self.spread + bias


def _best_strength(labels: Labels, inputs: Tensor, wanted: Tensor) -> tuple[float, Tensor, list[Fold]]:
    """Return the strength with the lowest loss on rows that the head was not fitted to, and weights to start from."""
    start = torch.zeros(len(labels.names), inputs.shape[1])
    if len(inputs) < FEWEST_ROWS:
        return USUAL_STRENGTH, start, []
    folds = [*_folds(labels, wanted)]
    starts, lowest, best = [start] * FOLDS, np.inf, (USUAL_STRENGTH, start, [Fold(*fold, start) for fold in folds])
    for strength in STRENGTHS:
        loss, found = 0.0, []
        for i, (train, test) in enumerate(folds):
            starts[i] = _solved(labels, inputs[train], wanted[train], strength, TRIAL, starts[i])
            found.append(Fold(train, test, inputs[test] @ starts[i].T))
            loss += float(head_loss(labels, found[-1].logits, wanted[test])) * len(test)
        if loss > lowest:  # weaker ones fit worse still
            break
        lowest, best = loss, (strength, torch.stack(starts).mean(dim=0), found)
    return best


def _folds(labels: Labels, wanted: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the rows to fit and the rows to test, with the same share of each label in every fold."""
    order = torch.randperm(len(wanted), generator=torch.Generator().manual_seed(0))[:MOST_ROWS]
    if labels.problem == "single_label":
        order = order[wanted[order].argsort(stable=True)]
    fold = torch.arange(len(order)) % FOLDS
    for number in range(FOLDS):
        yield order[fold != number], order[fold == number]


def _solved(
    labels: Labels,
    inputs: Tensor,
    wanted: Tensor,
    strength: float,
    limits: dict[str, float],
    start: Tensor,
) -> Tensor:
    """Return the weights `[C, D + 1]` with the lowest regularised loss, searched from `start`."""
    from scipy.optimize import minimize

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = torch.from_numpy(flat).float().view(start.shape).requires_grad_()
        found = head_loss(labels, inputs @ weights.T, wanted) + strength / 2 * weights.square().sum()
        (gradient,) = torch.autograd.grad(found, weights)
        return found.item(), gradient.double().flatten().numpy()

    with torch.enable_grad():
        result = minimize(loss, start.double().flatten().numpy(), jac=True, method="L-BFGS-B", options=limits)
    return torch.from_numpy(result.x).float().view(start.shape)
