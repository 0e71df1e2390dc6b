"""How good a classifier is: rates, curves, calibration, and the baselines that it has to beat.

    measures = measure(true, predicted, ("ham", "spam"))      # accuracy, macro_f1, per_class, confusion
    auc = roc_auc(true, probabilities, ("ham", "spam"))       # probabilities [T, C]
    reliability(confidence, correct).ece
    temperature = fit_temperature(logits, class_ids)          # softmax(logits / temperature) is calibrated
    tfidf_baseline(train_texts, train_labels, texts, labels)  # TF-IDF and logistic regression
    measure_sets(true, found, labels)                         # several labels a text, bool [T, C]
    measure_numbers(true, found)                              # the errors of estimates

T texts, C classes, B bins. Labels are strings; probabilities and logits are arrays whose columns are the classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from studio.errors import StudioError

BINS = 15
# Bounds on temperatures: where all predictions are right, or none, the best one would be 0 or infinite.
COLDEST, HOTTEST = 0.02, 50.0


@dataclass(frozen=True)
class ClassMeasures:
    label: str
    precision: float
    """0 where the class was never predicted."""
    recall: float
    """0 where there are no rows of the class."""
    f1: float
    support: int
    """Rows of the class."""


@dataclass(frozen=True, eq=False)
class Measures:
    accuracy: float
    """Where a text may have several labels, only all of them together are accurate."""
    macro_f1: float
    """The mean over the classes that occur or are predicted."""
    micro_f1: float
    per_class: tuple[ClassMeasures, ...]
    confusion: np.ndarray | None
    """int64 `[C, C]`, rows are what is true; None where a text may have several labels."""
    notices: tuple[str, ...]
    """Sentences about classes with too few rows to be measured."""


@dataclass(frozen=True)
class Auc:
    macro: float | None
    """The mean over classes, each against the rest; None where it is not defined for any."""
    per_class: dict[str, float]
    """Of the classes for which it is defined: some rows are of the class, and some are not."""


@dataclass(frozen=True, eq=False)
class Reliability:
    edges: np.ndarray
    """`[B + 1]`, even bins of confidence from 0 to 1."""
    counts: np.ndarray
    """int64 `[B]`"""
    confidence: np.ndarray
    """`[B]`, the mean; NaN where a bin is empty."""
    accuracy: np.ndarray
    """`[B]`; NaN where a bin is empty."""
    ece: float
    """Expected calibration error: the gap between both, weighed by counts."""


def measure(true: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> Measures:
    """Of predictions beside the truth.

    Raises:
        StudioError: there are no rows, or labels among them that are none of the classes.
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
    """Of texts that may have several labels.

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
    """`mean_absolute_error`, `rmse` and `r2` of estimates `[T]`; r2 is 0 where all true numbers are the same.

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
    """The area under the ROC curve of every class against the rest; both classes of two have the same.

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
    """Whether answers are right as often as they are sure (arXiv 1706.04599).

    Args:
        confidence: `[T]`, 0 to 1.
        correct: bool `[T]`.

    Raises:
        StudioError: there are no rows.
    """
    confidence, correct = finite(confidence), np.asarray(correct, dtype=np.float64)
    _require_rows(len(confidence))
    edges = np.linspace(0, 1, bins + 1)
    # A bin holds its upper edge, so that 1 is in the last one.
    places = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)  # [T]
    counts = np.bincount(places, minlength=bins)  # [B]
    filled = np.where(counts > 0, counts, np.nan)
    mean_confidence = np.bincount(places, confidence, bins) / filled
    accuracy = np.bincount(places, correct, bins) / filled
    gaps = np.nan_to_num(np.abs(accuracy - mean_confidence))
    return Reliability(edges, counts, mean_confidence, accuracy, float((gaps * counts).sum() / len(confidence)))


def fit_temperature(logits: np.ndarray, class_ids: np.ndarray) -> float:
    """The temperature by which logits are divided so that their softmax is as likely as can be (arXiv 1706.04599),
    from 0.02 to 50. Fit it on rows that nothing else was fitted on.

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
    """Mean negative log-likelihood of the true columns, in nats."""
    from scipy.special import log_softmax

    return float(-log_softmax(logits, axis=-1)[np.arange(len(logits)), class_ids].mean())


def majority_baseline(train_labels: Sequence[str], labels: Sequence[str]) -> Measures:
    """Always the most frequent class of the training rows; of several, the first by name.

    Raises:
        StudioError: as of `require_trained`.
    """
    require_trained(train_labels, labels)
    counts = Counter(train_labels)
    majority = min(counts, key=lambda label: (-counts[label], label))
    return measure(labels, [majority] * len(labels), sorted(counts))


def tfidf_baseline(
    train_texts: Sequence[str], train_labels: Sequence[str], texts: Sequence[str], labels: Sequence[str]
) -> Measures:
    """Logistic regression on TF-IDF of words and pairs of words; the plain method that a model has to beat.

    Raises:
        StudioError: as of `require_trained` and `tfidf_probabilities`.
    """
    require_trained(train_labels, labels)
    classes = sorted(set(train_labels))
    probabilities = tfidf_probabilities(train_texts, train_labels, texts, classes)
    return measure(labels, [classes[i] for i in probabilities.argmax(axis=-1)], classes)


def tfidf_probabilities(
    train_texts: Sequence[str], train_labels: Sequence[str], texts: Sequence[str], labels: Sequence[str]
) -> np.ndarray:
    """`[T, C]`; 0 for labels that no training row has.

    Raises:
        StudioError: the training rows are of one class or hold no words.
    """
    classes = sorted(set(train_labels))
    if len(classes) < 2:
        raise StudioError(f"All rows for training are of {classes[0]!r}: add rows of another class.")
    train_words, words = _tfidf(train_texts, texts)
    model = _regression().fit(train_words, list(train_labels))
    probabilities = np.zeros((len(texts), len(labels)))
    probabilities[:, [list(labels).index(name) for name in model.classes_]] = model.predict_proba(words)
    return probabilities


def tfidf_sets(train_texts: Sequence[str], train_sets: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """As `tfidf_probabilities`, of each label alone: bool `[N, C]` -> `[T, C]`."""
    train_words, words = _tfidf(train_texts, texts)
    probabilities = np.zeros((len(texts), train_sets.shape[1]))
    for column, has in zip(probabilities.T, train_sets.T, strict=True):
        column[:] = (
            _regression().fit(train_words, has).predict_proba(words)[:, 1] if 0 < has.sum() < len(has) else has[0]
        )
    return probabilities


def tfidf_numbers(train_texts: Sequence[str], train_numbers: Sequence[float], texts: Sequence[str]) -> np.ndarray:
    """Ridge regression on the same words: estimates `[T]`."""
    from sklearn.linear_model import Ridge

    train_words, words = _tfidf(train_texts, texts)
    estimates: np.ndarray = Ridge().fit(train_words, np.asarray(train_numbers, np.float64)).predict(words)
    return estimates


def _regression() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=10.0, max_iter=1000)


def _tfidf(train_texts: Sequence[str], texts: Sequence[str]) -> tuple[Any, Any]:
    """Of words and pairs of words, sparse."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    try:
        return words.fit_transform(list(train_texts)), words.transform(list(texts))
    except ValueError as error:
        if "empty vocabulary" not in str(error):
            raise
        raise StudioError("The texts for training hold no words. Check which column the texts are in.") from error


def require_known(found: Sequence[str], labels: Sequence[str]) -> None:
    """Raises StudioError: there are no rows, or some of them have a label that is none of the classes."""
    _require_rows(len(found))
    unknown = Counter(label for label in found if label not in set(labels))
    if unknown:
        label, count = unknown.most_common(1)[0]
        others = f" (and {len(unknown) - 1} more labels)" if len(unknown) > 1 else ""
        raise StudioError(
            f"{label!r}, the label of {count:,} row{'s' if count > 1 else ''}{others}, is none of the classes "
            f"{_listed(labels)}. Correct these rows, leave them out, or add the class."
        )


def require_trained(train_labels: Sequence[str], labels: Sequence[str]) -> None:
    """Raises StudioError: there are no rows to train on or to measure, or a class that only the latter have."""
    _require_rows(len(train_labels))
    _require_rows(len(labels))
    counts = Counter(label for label in labels if label not in set(train_labels))
    if counts:
        label, count = counts.most_common(1)[0]
        raise StudioError(
            f"{label!r} has {count:,} row{'s' if count > 1 else ''} to be measured and none to be learned from. Add "
            "rows of it to the training data, or leave it out."
        )


def _require_rows(count: int) -> None:
    if not count:
        raise StudioError("There are no rows with labels to measure. Add some.")


def finite(values: np.ndarray) -> np.ndarray:
    """float64; raises StudioError where something is no number, as after a training that went astray."""
    values = np.asarray(values, dtype=np.float64)
    if not np.isfinite(values).all():
        raise StudioError("The classifier's scores are not all numbers. Train it again with a lower learning rate.")
    return values


def _rare_classes(true: Sequence[str], labels: Sequence[str]) -> tuple[str, ...]:
    counts = Counter(true)
    absent = [label for label in labels if not counts[label]]
    single = [label for label in labels if counts[label] == 1]
    notices = []
    if absent:
        notices.append(f"No row is of {_listed(absent)}, so nothing can be said about finding such rows.")
    if single:
        notices.append(f"Only one row is of {_listed(single)}, so its recall is all or nothing: add rows of it.")
    return tuple(notices)


def _listed(labels: Sequence[str]) -> str:
    shown = ", ".join(repr(label) for label in list(labels)[:10])
    return f"{shown} and {len(labels) - 10} more" if len(labels) > 10 else shown
