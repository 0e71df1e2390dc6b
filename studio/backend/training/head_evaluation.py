"""Evaluate the finished head of a run, beside the fitted head, TF-IDF, and the weighted sum of both.

words = fit_words(prepared, fitted, warn)               # None if the texts hold no words
evaluate(prepared, run, logits, fitted, words)          # writes the report
words.both.save(folder)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, from_numpy

from studio.backend.classification import evaluation
from studio.backend.classification.head import probabilities
from studio.backend.classification.stacking import fit_weights
from studio.backend.classification.tfidf import Tfidf
from studio.backend.data.packing import pad_id
from studio.backend.runs.run import Run
from studio.backend.training import fsdp
from studio.backend.training.fitted_head import FittedHead, indices_to_fit
from studio.backend.training.prepare import Prepared
from studio.errors import StudioError

CHOSEN = (
    "The held-out rows also chose between the checkpoints and the fitted head, so these figures are slightly too good. "
    "Evaluate on other rows to be exact."
)


class Words(NamedTuple):
    plain: Tfidf
    """The baseline."""
    both: Tfidf
    """The same as a part of the weighted sum with the head."""


def fit_words(prepared: Prepared, fitted: FittedHead | None, warn: Callable[[str], None]) -> Words | None:
    """Fit TF-IDF to the training rows, and write into the configuration whether the classifier uses it.

    The weights are those of the head that was fitted to the frozen model, also after LoRA.
    """
    recipe, learned, labels = prepared.recipe, prepared.data.learned, prepared.data.labels
    assert learned is not None and labels is not None
    balanced = recipe.class_weights == "balanced"
    try:
        words = Tfidf.fit(learned, balanced)
    except StudioError as error:
        warn(f"TF-IDF is left out: {error}")
        return None
    prepared.base.config.score_with_tfidf = recipe.with_tfidf
    in_order = learned.part(indices_to_fit(prepared))
    return Words(words, words.weighted(*fit_weights(labels, in_order, fitted.folds if fitted else [], balanced)))


def evaluate(prepared: Prepared, run: Run, logits: Tensor, fitted: FittedHead | None, words: Words | None) -> None:
    """Evaluate on the held-out rows, write the report, and fit the temperature to these rows.

    Args:
        logits: of the head for these rows, `[T, C]`.
    """
    data, base, recipe = prepared.data, prepared.base, prepared.recipe
    assert data.labels is not None and data.measured is not None
    systems = _systems(prepared, logits, fitted, words)
    scores = {name: probabilities(data.labels.problem, each).numpy() for name, each in systems.items()}
    of = f"{len(data.held_out):,} held-out rows of {data.dataset.path.name}"
    report = evaluation.evaluate(data.measured, scores.pop(evaluation.OURS), of, data.learned, scores)
    report["trained"] = {"method": recipe.method, "with_tfidf": base.config.score_with_tfidf}
    report["learning_curve"] = fitted.curve if fitted else []
    if recipe.method == "lora":
        report["notices"].append(CHOSEN)
    if data.labels.problem == "single_label" and not fsdp.is_fsdp():
        report["profile"] = evaluation.profile(base, data.measured, data.held_out, pad_id(prepared.tokenizer))
    if report["temperature"] is not None:
        base.config.score_temperature = report["temperature"]["value"]
    evaluation.write(report, run)


def _systems(prepared: Prepared, logits: Tensor, fitted: FittedHead | None, words: Words | None) -> dict[str, Tensor]:
    """Return the logits `[T, C]` of the classifier and of all that it is compared with, by name."""
    data = prepared.data
    assert data.measured is not None
    found = {evaluation.OURS: logits}
    if fitted is not None and prepared.recipe.method == "lora":
        found[evaluation.FITTED] = fitted.held_out
    if words is None:
        return found
    plain = from_numpy(words.plain.logits(data.measured.texts))
    both = words.both.with_head(logits, data.measured.texts)
    if prepared.base.config.score_with_tfidf:
        found = {**found, evaluation.OURS: both, evaluation.ALONE: logits}
    else:
        found[evaluation.BOTH] = both
    return found | {evaluation.plain_name(data.measured.problem): plain}
