"""Metrics for classifiers: rates, curves, calibration, and baselines.

    measures = measure(true, predicted, ("ham", "spam"))      # accuracy, macro_f1, per_class, confusion
    auc = roc_auc(true, probabilities, ("ham", "spam"))       # probabilities [T, C]
    reliability(confidence, correct).ece
    temperature = fit_temperature(logits, class_ids)          # softmax(logits / temperature) is calibrated
    measure_sets(true, found, labels)                         # several labels a text, bool [T, C]
    measure_numbers(true, found)                              # regression errors

T texts, C classes, B bins. Labels are strings; probabilities and logits are arrays whose columns are the classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from studio.errors import StudioError

BINS = 15
# Bounds of the temperature. If all predictions are right, or none, the optimum would be 0 or infinite.
COLDEST, HOTTEST = 0.02, 50.0


@dataclass(frozen=True)
class ClassMeasures:
    label: str
    precision: float
    """0 if the class was never predicted."""
    recall: float
    """0 if there are no rows of the class."""
    f1: float
    support: int
    """Rows of the class."""


@dataclass(frozen=True, eq=False)
class Measures:
    accuracy: float
    """In multi-label problems, only exact matches count."""
    macro_f1: float
    """Mean over the classes that occur or are predicted."""
    micro_f1: float
    per_class: tuple[ClassMeasures, ...]
    confusion: np.ndarray | None
    """int64 `[C, C]`, rows are true classes; None in multi-label problems."""
    notices: tuple[str, ...]
    """Sentences about classes with too few rows to evaluate."""


@dataclass(frozen=True)
class Auc:
    macro: float | None
    """Mean over classes, one-vs-rest; None if it is undefined for all."""
    per_class: dict[str, float]
    """Only classes with a defined AUC: some rows are of the class, and some are not."""


@dataclass(frozen=True, eq=False)
class Reliability:
    edges: np.ndarray
    """`[B + 1]`, equal-width bins of confidence from 0 to 1."""
    counts: np.ndarray
    """int64 `[B]`, rows per bin."""
    confidence: np.ndarray
    """`[B]`, the mean; NaN for empty bins."""
    accuracy: np.ndarray
    """`[B]`; NaN for empty bins."""
    ece: float
    """Expected calibration error: the mean gap between confidence and accuracy, weighted by counts."""


def measure(true: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> Measures:
    """Compare predictions with true labels.

    Raises:
        StudioError: there are no rows, or a label is not one of the classes.
    """
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

    require_known(true, labels)
    require_known(predicted, labels)
    labels, true, predicted = list(labels), list(true), list(predicted)
    precision, recall, f1, support = precision_recall_fscore_support(true, predicted, labels=labels, zero_division=0)
    occurring = [label for label in labels if label in {*true, *predicted}]
    return Measures(
        accuracy=float(accuracy_score(true, predicted)),
        macro_f1=float(f1_score(true, predicted, labels=occurring, average="macro", zero_division=0)),
        micro_f1=float(f1_score(true, predicted, labels=labels, average="micro", zero_division=0)),
        per_class=tuple(
            ClassMeasures(label, float(precision[i]), float(recall[i]), float(f1[i]), int(support[i]))
            for i, label in enumerate(labels)
        ),
        confusion=confusion_matrix(true, predicted, labels=labels),
        notices=_rare_classes(true, labels),
    )


def measure_sets(true: np.ndarray, found: np.ndarray, labels: Sequence[str]) -> Measures:
    """Compare multi-label predictions with true labels.

    Args:
        true, found: bool `[T, C]`.

    Raises:
        StudioError: there are no rows.
    """
    from sklearn.metrics import f1_score, precision_recall_fscore_support

    _require_rows(len(true))
    precision, recall, f1, support = precision_recall_fscore_support(true, found, average=None, zero_division=0)
    occurring = (true | found).any(axis=0)  # [C]
    return Measures(
        accuracy=float((true == found).all(axis=-1).mean()),
        macro_f1=float(f1[occurring].mean()) if occurring.any() else 0.0,
        micro_f1=float(f1_score(true, found, average="micro", zero_division=0)),
        per_class=tuple(
            ClassMeasures(label, float(precision[i]), float(recall[i]), float(f1[i]), int(support[i]))
            for i, label in enumerate(labels)
        ),
        confusion=None,
        notices=_rare_classes([label for row in true for label in np.asarray(labels)[row]], labels),
    )


def measure_numbers(true: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Return `mean_absolute_error`, `rmse` and `r2` of estimates `[T]`; r2 is 0 if all true numbers are equal.

    Raises:
        StudioError: there are no rows.
    """
    true, found = np.asarray(true, np.float64), np.asarray(found, np.float64)
    _require_rows(len(true))
    error, spread = found - true, np.var(true)
    return {
        "mean_absolute_error": float(np.abs(error).mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "r2": float(1 - (error**2).mean() / spread) if spread > 0 else 0.0,
    }


def roc_auc(true: Sequence[str], probabilities: np.ndarray, labels: Sequence[str]) -> Auc:
    """Return the one-vs-rest area under the ROC curve of every class. Two classes have the same area.

    Args:
        probabilities: `[T, C]`.

    Raises:
        StudioError: as of `measure`.
    """
    from sklearn.metrics import roc_auc_score

    require_known(true, labels)
    names = np.asarray(true)
    probabilities = finite(probabilities)
    per_class = {
        label: float(roc_auc_score(names == label, probabilities[:, i]))
        for i, label in enumerate(labels)
        if 0 < (names == label).sum() < len(names)
    }
    return Auc(float(np.mean(list(per_class.values()))) if per_class else None, per_class)


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> Reliability:
    """Compare confidence with accuracy in bins (arXiv 1706.04599).

    Args:
        confidence: `[T]`, 0 to 1.
        correct: bool `[T]`.

    Raises:
        StudioError: there are no rows.
    """
    confidence, correct = finite(confidence), np.asarray(correct, dtype=np.float64)
    _require_rows(len(confidence))
    edges = np.linspace(0, 1, bins + 1)
    # Bins include their upper edge, so that 1 falls into the last one.
    places = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)  # [T]
    counts = np.bincount(places, minlength=bins)  # [B]
    filled = np.where(counts > 0, counts, np.nan)
    mean_confidence = np.bincount(places, confidence, bins) / filled
    accuracy = np.bincount(places, correct, bins) / filled
    gaps = np.nan_to_num(np.abs(accuracy - mean_confidence))
    return Reliability(edges, counts, mean_confidence, accuracy, float((gaps * counts).sum() / len(confidence)))


def fit_temperature(logits: np.ndarray, class_ids: np.ndarray) -> float:
    """Return the temperature from 0.02 to 50 that minimizes the NLL of softmax(logits / temperature).

    Temperature scaling follows arXiv 1706.04599. Fit it on rows that nothing else was fitted on.

    Args:
        logits: `[T, C]`.
        class_ids: `[T]`, the true columns.

    Raises:
        StudioError: there are no rows.
    """
    from scipy.optimize import minimize_scalar

    logits, class_ids = finite(logits), np.asarray(class_ids)
    _require_rows(len(logits))
    bounds = (np.log(COLDEST), np.log(HOTTEST))
    fitted = minimize_scalar(lambda log: nll(logits / np.exp(log), class_ids), bounds=bounds, method="bounded")
    return float(np.exp(fitted.x))


def nll(logits: np.ndarray, class_ids: np.ndarray) -> float:
    """Return the mean negative log-likelihood of the true columns, in nats."""
    from scipy.special import log_softmax

    return float(-log_softmax(logits, axis=-1)[np.arange(len(logits)), class_ids].mean())


def majority_baseline(train_labels: Sequence[str], labels: Sequence[str]) -> Measures:
    """Evaluate always predicting the most frequent class of the training rows; ties go to the first name.

    Raises:
        StudioError: as of `require_trained`.
    """
    require_trained(train_labels, labels)
    counts = Counter(train_labels)
    majority = min(counts, key=lambda label: (-counts[label], label))
    return measure(labels, [majority] * len(labels), sorted(counts))


def require_known(found: Sequence[str], labels: Sequence[str]) -> None:
    """Raise StudioError if there are no rows, or a label is not one of the classes."""
    _require_rows(len(found))
    unknown = Counter(label for label in found if label not in set(labels))
    if unknown:
        label, count = unknown.most_common(1)[0]
        others = f" (and {len(unknown) - 1} more labels)" if len(unknown) > 1 else ""
        raise StudioError(
            f"{label!r}, the label of {count:,} row{'s' if count > 1 else ''}{others}, is not one of the classes "
            f"{_listed(labels)}. Correct these rows, leave them out, or add the class."
        )


def require_trained(train_labels: Sequence[str], labels: Sequence[str]) -> None:
    """Raise StudioError if there are no rows to train on or to evaluate, or a class has no training rows."""
    _require_rows(len(train_labels))
    _require_rows(len(labels))
    counts = Counter(label for label in labels if label not in set(train_labels))
    if counts:
        label, count = counts.most_common(1)[0]
        raise StudioError(
            f"{label!r} has {count:,} row{'s' if count > 1 else ''} to evaluate, but no training rows. Add rows of it "
            "to the training data, or leave it out."
        )


def _require_rows(count: int) -> None:
    if not count:
        raise StudioError("There are no rows with labels to evaluate. Add some.")


def finite(values: np.ndarray) -> np.ndarray:
    """Return float64 values. Raise StudioError if one is not finite, for example after a diverged training."""
    values = np.asarray(values, dtype=np.float64)
    if not np.isfinite(values).all():
        raise StudioError("The classifier's scores are not all finite. Train it again with a lower learning rate.")
    return values


def _rare_classes(true: Sequence[str], labels: Sequence[str]) -> tuple[str, ...]:
    counts = Counter(true)
    absent = [label for label in labels if not counts[label]]
    single = [label for label in labels if counts[label] == 1]
    notices = []
    if absent:
        notices.append(f"Labels without rows: {_listed(absent)}. Their recall can't be measured; add rows.")
    if single:
        notices.append(f"Labels with only one row: {_listed(single)}. Their recall is either 0 or 1; add rows.")
    return tuple(notices)


def _listed(labels: Sequence[str]) -> str:
    shown = ", ".join(repr(label) for label in list(labels)[:10])
    return f"{shown} and {len(labels) - 10} more" if len(labels) > 10 else shown
