"""Predictions of a trained head, in the form that the page, the command line and files share.

head = TrainedHead(TrainedClassifier.load("3f2a"))
head.labels
for prediction in head.predict(["The match ended in a draw."], cancel):
    print(prediction.label, prediction.confidence)
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator
from itertools import islice

from studio.backend.classification.head import THRESHOLD
from studio.backend.classification.prediction import Prediction
from studio.backend.classification.trained import Predictions, TrainedClassifier

BATCH = 64


class TrainedHead:
    """Classify with a trained head, one batch at a time.

    Args:
        batch: texts per batch.
    """

    def __init__(self, classifier: TrainedClassifier, batch: int | None = None) -> None:
        self.classifier, self.batch = classifier, batch or BATCH

    @property
    def labels(self) -> tuple[str, ...]:
        return self.classifier.names

    def predict(
        self, texts: Iterable[str], cancel: threading.Event | None = None, with_trace: bool = False
    ) -> Iterator[Prediction]:
        """Yield one prediction per text, in order. Setting `cancel` stops early.

        Arguments and errors as of `TrainedClassifier.predict`.
        """
        cancelled = (cancel or threading.Event()).is_set
        waiting = iter(texts)
        while batch := list(islice(waiting, self.batch)):
            found = self.classifier.predict(batch, cancelled=cancelled, with_trace=with_trace)
            if found is None:
                return
            for i, text in enumerate(batch):
                yield self._prediction(text, i, found)

    def _prediction(self, text: str, i: int, found: Predictions) -> Prediction:
        scores = dict(zip(found.names, found.probabilities[i].tolist(), strict=True))
        label, confidence = _chosen(scores, found.problem)
        cut = ""
        if i in found.cut:
            cut = f"The end of the text was cut: the classifier reads at most {self.classifier.max_length:,} tokens."
        trace = found.traces[i] if found.traces else None
        return Prediction(text, label, confidence, scores, (cut,) if cut else (), cut, trace)


def _chosen(scores: dict[str, float], problem: str) -> tuple[str, float]:
    """Return the label and its confidence.

    Multi-label: all labels that apply, and the confidence of the most likely one. Regression: the number, and NaN.
    """
    if problem == "regression":
        (number,) = scores.values()
        return f"{number:.4g}", math.nan
    likeliest = max(scores, key=scores.__getitem__)
    if problem == "multi_label":
        return ", ".join(name for name, score in scores.items() if score >= THRESHOLD), scores[likeliest]
    return likeliest, scores[likeliest]
