"""Classify texts by labels that the user types, without training.

    classifier = ZeroShot(engine)
    task = LabelTask(("sport", "science"))
    for prediction in classifier.predict(["The match ended in a draw."], task):
        print(prediction.label, prediction.confidence, prediction.scores)

The score of a label is its log-probability after the prompt, and the confidences are a softmax over the scores.
Contextual calibration (arXiv 2102.09690) divides by the probabilities of the labels for content-free texts, so that
neither short nor frequent labels are favoured. Without calibration, the score is the mean over the tokens of a label.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from jetmoe import RoutingRecorder, RoutingTrace
from studio.backend.chat.decoder import Decoder
from studio.backend.chat.engine import Engine, Turn
from studio.backend.chat.text_stream import token_texts
from studio.backend.classification.label_prompt import (
    DEFAULT_TEMPLATE,
    Cut,
    LabelPrompt,
    LabelPrompts,
    check_cut,
    check_labels,
    resolve_template,
)
from studio.backend.classification.label_scores import LabelScorer, like_lengths
from studio.backend.classification.prediction import Prediction
from studio.backend.data.prompt import check_text
from studio.backend.models import placement
from studio.errors import StudioError

CONTENT_FREE = ("N/A", "", "[MASK]")
TURN_TOKENS = 2048
"""Tokens after which the model goes to the next request in the queue."""
MOST_PRIORS = 64
FEWEST_TEXTS = 16
"""Texts from which on their labels are expected to vary."""
ONE_SIDED = 0.65
"""How far the share of one label may be from an even share, where 1 means that it has all texts."""


def one_sided(counts: Mapping[str, int], labels: Sequence[str]) -> list[str]:
    """Return a notice if one of the labels has nearly all of these texts, else nothing.

    Args:
        counts: number of texts with each label.
    """
    texts, even = sum(counts.values()), 1 / len(labels)
    label = max(counts, key=counts.__getitem__, default="")
    if texts < FEWEST_TEXTS or counts[label] / texts < even + ONE_SIDED * (1 - even):
        return []
    return [
        f"{counts[label]:,} of {texts:,} texts got the label {label!r}. If that is wrong, describe the labels in plain "
        "words, choose another template, or train a classifier on labelled texts."
    ]


@dataclass(frozen=True)
class LabelTask:
    """The labels and prompt settings of a classification.

    Raises:
        StudioError: see `check_labels`, `resolve_template` and `check_cut`.
    """

    labels: tuple[str, ...]
    template: str = DEFAULT_TEMPLATE
    """The name of one of TEMPLATES, or a text with {text} and optionally {labels}."""
    calibrate: bool = True
    """Subtract the log-probabilities of the labels for content-free texts."""
    cut: Cut = "middle"
    """Where to truncate a text that is too long: middle or end."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", check_labels(self.labels))
        object.__setattr__(self, "template", resolve_template(self.template))
        check_cut(self.cut)


class ZeroShot:
    """Classify with the engine's model. Measured priors are cached."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._priors: WeakKeyDictionary[Decoder, dict[_PriorKey, np.ndarray]] = WeakKeyDictionary()

    def predict(
        self,
        texts: Sequence[str],
        task: LabelTask,
        adapter: str | None = None,
        cancel: threading.Event | None = None,
        with_trace: bool = False,
    ) -> Iterator[Prediction]:
        """Yield one prediction per text, in order. Setting `cancel` stops early.

        The model is released between batches.

        Args:
            adapter: the name of a loaded adapter, or an id as of `Engine.ensure_adapter`; None is the base model.

        Raises:
            StudioError: a text is empty, no model is ready, the model was changed meanwhile, the adapter is
                unavailable, or the labels don't fit this model.
        """
        for number, text in enumerate(texts, start=1):
            check_text(text, f"Text {number}" if len(texts) > 1 else "The text")
        cancelled = (cancel or threading.Event()).is_set
        waiting = deque(texts)
        decoder = None
        while waiting and not cancelled():
            with self.engine.turn(adapter, cancelled) as turn:
                if turn is None:
                    return
                if decoder not in (None, turn.decoder):
                    raise StudioError("Another model was loaded while texts were classified. Start again with it.")
                decoder = turn.decoder
                with placement.shortage("while classifying: shorten the texts or load the model in nf4"):
                    batch = self._batch(waiting, _Asked(turn, task, cancelled), adapter, with_trace)
            # Yield after the model is released, because the consumer may be slow.
            yield from batch

    def _batch(self, waiting: deque[str], asked: _Asked, adapter: str | None, with_trace: bool) -> list[Prediction]:
        """Classify the next texts and remove them from `waiting`."""
        prior = self._prior(asked, adapter) if asked.task.calibrate else np.zeros(len(asked.task.labels))
        predictions: list[Prediction] = []
        if prior is None:
            return predictions
        prompts = asked.prompts_of(waiting)
        for prompt, scored in zip(prompts, asked.score(prompts, with_trace), strict=True):
            if scored is None:
                break
            probabilities = _softmax(scored.scores - prior)
            scores = dict(zip(asked.task.labels, probabilities.tolist(), strict=True))
            label = max(scores, key=scores.__getitem__)
            notices = (*asked.prompts.notices, *filter(None, [prompt.cut]))
            text = waiting.popleft()
            predictions.append(Prediction(text, label, scores[label], scores, notices, prompt.cut, scored.trace))
        return predictions

    def _prior(self, asked: _Asked, adapter: str | None) -> np.ndarray | None:
        """Return the log of the mean label probabilities `[labels]` for content-free texts; None if cancelled."""
        known = self._priors.setdefault(asked.turn.decoder, {})
        key = _PriorKey(asked.task.labels, asked.task.template, adapter, asked.turn.adapter_load)
        if key not in known:
            scored = asked.score([asked.prompts.of(text) for text in CONTENT_FREE])
            found = [_softmax(one.scores) for one in scored if one is not None]
            if len(found) < len(scored):
                return None
            known[key] = np.log(np.mean(found, axis=0))
            if len(known) > MOST_PRIORS:
                del known[next(iter(known))]
        return known[key]


class _PriorKey(NamedTuple):
    labels: tuple[str, ...]
    template: str
    adapter: str | None
    adapter_load: int


class _Scored(NamedTuple):
    scores: np.ndarray
    """`[labels]`"""
    trace: RoutingTrace | None


class _Asked:
    """A task, prepared for the model of a turn."""

    def __init__(self, turn: Turn, task: LabelTask, cancelled: Callable[[], bool]) -> None:
        self.turn, self.task, self.cancelled = turn, task, cancelled
        self.prompts = LabelPrompts(turn.tokenizer, task.template, task.labels, turn.decoder.context_size, task.cut)
        self.scorer = LabelScorer(turn.decoder.model, self.prompts.shared_ids, cancelled)

    def prompts_of(self, texts: Iterable[str]) -> list[LabelPrompt]:
        """Return the prompts of the first texts, as many as one turn may take."""
        prompts: list[LabelPrompt] = []
        tokens = 0
        for text in texts:
            prompts.append(self.prompts.of(text))
            tokens += prompts[-1].unread
            if tokens >= TURN_TOKENS:
                break
        return prompts

    def score(self, prompts: Sequence[LabelPrompt], with_trace: bool = False) -> list[_Scored | None]:
        """Score the prompts; None for each that was not scored before a cancellation."""
        scored: list[_Scored | None] = [None] * len(prompts)
        for batch in [[i] for i in range(len(prompts))] if with_trace else like_lengths(prompts):
            recorder = RoutingRecorder(self.turn.decoder.model, prompts[batch[0]].unread) if with_trace else None
            found = None if self.cancelled() else self.scorer.score([prompts[i] for i in batch], recorder)
            if found is None:
                break
            for i, log_probs in zip(batch, found, strict=True):
                trace = None if recorder is None else self._trace(prompts[i], recorder)
                scored[i] = _Scored(self._comparable(log_probs, prompts[i]), trace)
        return scored

    def _comparable(self, log_probs: np.ndarray, prompt: LabelPrompt) -> np.ndarray:
        """Return scores `[labels]` of labels of any length; calibration makes up for the length, or else the mean."""
        return log_probs if self.task.calibrate else log_probs / [len(label) for label in prompt.labels]

    def _trace(self, prompt: LabelPrompt, recorder: RoutingRecorder) -> RoutingTrace:
        ids = prompt.token_ids[prompt.text]
        return recorder.trace(ids, token_texts(self.turn.tokenizer, ids), is_prompt=True)


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()
