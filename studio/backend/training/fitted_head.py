"""Fit the head of a classifier to the frozen model before LoRA: a linear probe.

    fitted = fit(prepared, run, keep_going)          # None if keep_going returned False
    fitted.use(prepared)                             # the adapter is as new, and the head is the fitted one
    fitted.figures                                   # accuracy and macro-F1 on the held-out rows

Training goes on from a head that fits, so that it does not distort the features (LP-FT, arXiv 2202.10054).
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from studio.backend.classification.features import read_features
from studio.backend.classification.head import LabelledFeature, head_loss, measure
from studio.backend.classification.head_fit import Fold, as_tensor, fit_heads
from studio.backend.data.packing import pad_id
from studio.backend.runs.run import Run
from studio.backend.training.prepare import HEAD_ROWS, Prepared, TrainingData
from studio.errors import StudioError

FEATURES = "features"
FEWEST_ROWS = 32
"""Rows of the first point of the learning curve at least."""


@dataclass(frozen=True)
class FittedHead:
    weight: Tensor
    """float32 `[C, D]`"""
    held_out: Tensor
    """Its logits of the held-out rows, float32 `[T, C]`."""
    figures: dict[str, float]
    """The metrics of the held-out rows, under their names in events; empty if there are none."""
    curve: list[dict[str, float]]
    """The metrics of heads that were fitted to parts of the rows, and of this one; empty without held-out rows."""

    folds: list[Fold]
    """Its cross-validation; the indices are those of `rows_to_fit`."""

    def is_better(self, data: TrainingData, logits: Tensor) -> bool:
        """Return whether this head is better on the held-out rows than another one with these logits `[T, C]`."""
        before, after = self.figures[data.measure], _figures(data, logits)[data.measure]
        return before < after if data.measure == "eval_loss" else before > after

    @torch.no_grad()
    def use(self, prepared: Prepared) -> None:
        """Set the head, and set the adapter to zero."""
        prepared.base.score.weight.copy_(self.weight)
        for name, parameter in prepared.model.named_parameters():
            if ".lora_B." in name:
                parameter.zero_()


def fit(prepared: Prepared, run: Run, keep_going: Callable[[int, int], bool]) -> FittedHead | None:
    """Read the rows and fit the head; return None if `keep_going` returned False.

    Args:
        keep_going: called with the number of rows read, and of all rows.

    Raises:
        StudioError: the features can't be stored.
    """
    data, labels = prepared.data, prepared.data.labels
    assert labels is not None
    train = rows_to_fit(prepared)
    rows = [*train, *data.held_out]
    texts = [token_ids for token_ids, _ in rows]
    folder, pad = run.folder / FEATURES, pad_id(prepared.tokenizer)
    try:
        features = read_features(prepared.base, texts, pad, folder, lambda done: keep_going(done, len(rows)))  # [T, D]
    except OSError as error:
        raise StudioError(
            f"The features can't be stored in {run.folder} ({error.strerror}). Free some space and resume the run: it "
            "continues after the last texts that were stored."
        ) from error
    if features is None:
        return None
    targets, counts = [target for _, target in train], _counts(len(train), data)
    heads, folds = fit_heads(labels, features[: len(train)], targets, counts)
    logits = {count: features[len(train) :] @ weight.T for count, weight in heads.items()}  # [T, C] each
    figures = {count: _figures(data, logits[count]) for count in counts}
    return FittedHead(heads[len(train)], logits[len(train)], figures[len(train)], _curve(figures), folds)


def _curve(figures: dict[int, dict[str, float]]) -> list[dict[str, float]]:
    return [
        {"rows": count, **{name.removeprefix("eval_"): value for name, value in each.items()}}
        for count, each in figures.items()
        if each
    ]


def _counts(rows: int, data: TrainingData) -> list[int]:
    """Return the numbers of rows to fit to: doubled up to all of them for the learning curve."""
    return [rows >> halvings for halvings in (3, 2, 1) if data.held_out and rows >> halvings >= FEWEST_ROWS] + [rows]


def _figures(data: TrainingData, logits: Tensor) -> dict[str, float]:
    if not data.held_out or data.labels is None:
        return {}
    labels, targets = data.labels, as_tensor(data.labels, [target for _, target in data.held_out])
    figures = {"loss": float(head_loss(labels, logits, targets)), **measure(labels, logits, targets)}
    return {f"eval_{name}": value for name, value in figures.items()}


def forget(run: Run) -> None:
    """Delete the stored features of a finished run."""
    shutil.rmtree(run.folder / FEATURES, ignore_errors=True)


def rows_to_fit(prepared: Prepared) -> list[LabelledFeature]:
    """Return the training rows that the head is fitted to, in random order."""
    return [prepared.data.train[i] for i in indices_to_fit(prepared)]


def indices_to_fit(prepared: Prepared) -> list[int]:
    """Return the indices of these rows: all for a probe, at most HEAD_ROWS before LoRA."""
    rows = len(prepared.data.train)
    most = rows if prepared.recipe.method == "probe" else min(rows, HEAD_ROWS)
    return random.Random(prepared.recipe.seed).sample(range(rows), most)
