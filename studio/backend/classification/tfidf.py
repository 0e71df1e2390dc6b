"""TF-IDF with a linear model: the baseline of a classifier, and the part of one that is saved beside its head.

    words = Tfidf.fit(learned)                      # learned: the training rows, a `Truth`
    words.logits(["The match ended in a draw."])    # float64 [T, C], or the number of a regression
    both = words.weighted(0.6, 0.8)                 # weights of the head and of TF-IDF, see `stacking.py`
    both.with_head(head_logits, texts)              # the logits of both together
    words.save(folder)                              # safetensors and JSON, which run no code when they are loaded
    Tfidf.load(folder)

T texts, C labels, V words and word pairs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from studio.backend.data.labelled import Truth
from studio.errors import StudioError

WEIGHTS, VOCABULARY = "tfidf.safetensors", "tfidf.json"
FILES = (WEIGHTS, VOCABULARY)
OPTIONS: dict[str, Any] = {"ngram_range": (1, 2), "sublinear_tf": True}
MOST_WORDS = 100_000
"""Words and word pairs, of which the most frequent ones are kept."""
INVERSE_STRENGTH = 10.0
"""scikit-learn's C, the inverse of the regularisation."""
CERTAIN = 10.0
"""Logit of a label that all training rows have, and of one that none has if negative."""


@dataclass(frozen=True, eq=False)
class Tfidf:
    vectorizer: Any
    """scikit-learn's TfidfVectorizer."""
    coef: np.ndarray
    """float32 `[C, V]`"""
    intercept: np.ndarray
    """float32 `[C]`"""
    head_weight: float = 0.0
    """What the logits of a head are multiplied by before they are added."""

    @classmethod
    def fit(cls, learned: Truth, balanced: bool = False) -> Tfidf:
        """Fit logistic regression, one for each label if a text may have several, or ridge regression for numbers.

        Args:
            balanced: weight rare labels more, as class_weights=balanced.

        Raises:
            StudioError: the training rows have only one label, or no words.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(**OPTIONS, max_features=MOST_WORDS)
        try:
            words = vectorizer.fit_transform(list(learned.texts))
        except ValueError as error:
            if "empty vocabulary" not in str(error):
                raise
            raise StudioError("The training texts hold no words. Check the column of the texts.") from error
        fit = {"single_label": _single, "multi_label": _several, "regression": _numbers}[learned.problem]
        coef, intercept = fit(words, learned, balanced)
        return cls(vectorizer, coef.astype(np.float32), intercept.astype(np.float32))

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Return float64 `[T, C]`, whose softmax, or sigmoid for several labels a text, gives the probabilities."""
        found: np.ndarray = self.vectorizer.transform(list(texts)) @ self.coef.T + self.intercept
        return found

    def weighted(self, head: float, words: float) -> Tfidf:
        """Return the part of a weighted sum with a head."""
        return replace(self, coef=self.coef * words, intercept=self.intercept * words, head_weight=head)

    def with_head(self, head: Tensor, texts: Sequence[str]) -> Tensor:
        """Return the weighted sum with the logits `[T, C]` of a head, fp32."""
        return head * self.head_weight + torch.from_numpy(self.logits(texts)).float()

    def save(self, folder: Path) -> None:
        """Write the two files. Raise OSError or SafetensorError if they can't be written."""
        idf = np.asarray(self.vectorizer.idf_, np.float32)  # [V]
        words = sorted(self.vectorizer.vocabulary_, key=self.vectorizer.vocabulary_.__getitem__)
        tensors = {"coef": self.coef, "intercept": self.intercept, "idf": idf}
        save_file(tensors | {"head_weight": np.array([self.head_weight], np.float32)}, folder / WEIGHTS)
        (folder / VOCABULARY).write_text(json.dumps(words, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, labels: int) -> Tfidf:
        """Load the files.

        Raises:
            StudioError: a file is missing or damaged, or is that of another number of labels.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer

        try:
            words = json.loads((folder / VOCABULARY).read_text(encoding="utf-8"))
            stored = load_file(folder / WEIGHTS)
            vectorizer = TfidfVectorizer(**OPTIONS, vocabulary=words)
            vectorizer.idf_ = stored["idf"].astype(np.float64)
            coef, intercept, head_weight = stored["coef"], stored["intercept"], float(stored["head_weight"][0])
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, SafetensorError) as error:
            raise StudioError(
                f"The TF-IDF part of the classifier in {folder.name} can't be read ({type(error).__name__}). Copy "
                f"{WEIGHTS} and {VOCABULARY} from the original, or export it again."
            ) from error
        if coef.shape != (labels, len(words)) or intercept.shape != (labels,):
            raise StudioError(f"{WEIGHTS} in {folder.name} belongs to another classifier. Export it again.")
        return cls(vectorizer, coef, intercept, head_weight)


def _single(words: Any, learned: Truth, balanced: bool) -> tuple[np.ndarray, np.ndarray]:
    targets = np.asarray(learned.targets, np.int64)
    if len(set(targets.tolist())) < 2:
        raise StudioError(f"All training rows have the label {learned.names[targets[0]]!r}. Add rows of another label.")
    model = _regression(balanced).fit(words, targets)
    coef, intercept = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn stores the difference of the two
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    whole = np.zeros((len(learned.names), words.shape[1])), np.full(len(learned.names), -CERTAIN)
    whole[0][model.classes_], whole[1][model.classes_] = coef, intercept
    return whole


def _several(words: Any, learned: Truth, balanced: bool) -> tuple[np.ndarray, np.ndarray]:
    coef, intercept = np.zeros((len(learned.names), words.shape[1])), np.zeros(len(learned.names))
    for label in range(len(learned.names)):
        has = np.array([label in target for target in learned.targets])  # type: ignore[operator]
        if has.any() and not has.all():
            model = _regression(balanced).fit(words, has)
            coef[label], intercept[label] = model.coef_[0], model.intercept_[0]
        else:
            intercept[label] = CERTAIN if has.any() else -CERTAIN
    return coef, intercept


def _numbers(words: Any, learned: Truth, balanced: bool) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.linear_model import Ridge

    model = Ridge().fit(words, np.asarray(learned.targets, np.float64))
    return model.coef_[None], np.array([model.intercept_])


def _regression(balanced: bool) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=INVERSE_STRENGTH, max_iter=1000, class_weight="balanced" if balanced else None)
