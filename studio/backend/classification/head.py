"""Batches, losses, probabilities and metrics for training a classification head.

    batch = LabelledCollator(pad_id, labels)(rows[:8])       # input_ids, attention_mask [B, S], labels [B] or [B, C]
    loss = head_loss(labels, logits, batch["labels"])
    figures = measure(labels, logits, targets)               # accuracy and macro-F1, or regression errors
    configure(config, labels, pad_id)                        # for models of jetmoe and of stock transformers

C labels; the other letters are declared in `jetmoe/routing.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.trainer_pt_utils import LengthGroupedSampler

from studio.analysis import measures
from studio.backend.data.labelled import Labels, Target

LabelledFeature = tuple[Sequence[int], Target]
"""Token ids of a text, and its target."""
PROBLEM_TYPES = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
THRESHOLD = 0.5
"""Minimum probability of a label in multi-label problems."""


def configure(config: Any, labels: Labels, pad_id: int) -> None:
    """Write the labels into a model's configuration, under transformers' names."""
    config.id2label = dict(enumerate(labels.names))
    config.label2id = {name: i for i, name in enumerate(labels.names)}
    config.problem_type = PROBLEM_TYPES[labels.problem]
    config.score_temperature = labels.temperature
    config.score_prompt = labels.prompt
    config.score_with_tfidf = labels.with_tfidf
    config.pad_token_id = pad_id  # stock transformers finds the last token of a text by the padding token


def labels_of(config: Any) -> Labels:
    """Return the labels from a configuration that `configure` wrote."""
    names = tuple(config.id2label[i] for i in range(config.num_labels))
    fallback = "regression" if config.num_labels == 1 else "single_label"
    found = {name: problem for problem, name in PROBLEM_TYPES.items()}
    problem = found.get(config.problem_type, fallback)
    return Labels(
        problem,
        names,
        prompt=config.score_prompt,
        temperature=config.score_temperature,
        with_tfidf=config.score_with_tfidf,
    )


# --- batches


class LabelledCollator:
    """Collate texts and targets. Texts are padded to the longest one."""

    def __init__(self, pad_id: int, labels: Labels) -> None:
        self.pad_id, self.labels = pad_id, labels

    def __call__(self, features: Sequence[LabelledFeature]) -> dict[str, Tensor]:
        texts = padded([token_ids for token_ids, _ in features], self.pad_id)
        return {**texts, "labels": self._targets([target for _, target in features])}

    def _targets(self, targets: Sequence[Any]) -> Tensor:
        if self.labels.problem != "multi_label":
            return torch.tensor(targets)  # [B]
        hot = torch.zeros(len(targets), len(self.labels.names))  # [B, C]
        for row, target in zip(hot, targets, strict=True):
            row[list(target)] = 1
        return hot


def padded(texts: Sequence[Sequence[int]], pad_id: int) -> dict[str, Tensor]:
    """Return `input_ids` and `attention_mask` `[B, S]`, padded on the right."""
    size = max(map(len, texts))
    ids = [[*text, *[pad_id] * (size - len(text))] for text in texts]
    mask = [[1] * len(text) + [0] * (size - len(text)) for text in texts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


class LengthGrouped(LengthGroupedSampler):
    """Sample rows so that the texts of a batch have similar lengths, in a new order each epoch.

    The order depends only on seed and epoch, so a resumed run repeats it. The longest text comes first, so that running
    out of memory shows at once.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        super().__init__(batch_size, lengths=list(lengths))
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        (seed,) = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)
        self.generator = torch.Generator().manual_seed(int(seed))
        return super().__iter__()


# --- losses and metrics


def head_loss(labels: Labels, logits: Tensor, targets: Tensor, count: Tensor | int | None = None) -> Tensor:
    """Return the mean loss over the rows, or their sum divided by `count`, the rows of a whole step.

    With class weights, single-label losses remain a mean: the weights of all training rows sum to the number of rows.
    """
    logits = logits.float()
    if labels.problem == "regression":
        each = F.mse_loss(logits.squeeze(-1), targets.float(), reduction="none")  # [B]
    elif labels.problem == "multi_label":
        weights = _positive_weights(labels, logits.device)
        each = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="none").mean(-1)  # [B]
    else:
        each = F.cross_entropy(logits, targets, weight=_row_weights(labels, logits.device), reduction="none")  # [B]
    return each.sum() / (len(targets) if count is None else torch.as_tensor(count, device=each.device))


def _row_weights(labels: Labels, device: torch.device) -> Tensor | None:
    """Return weights `[C]`, inversely proportional to the number of rows of each label."""
    if labels.weights == "none":
        return None
    counts = torch.tensor(labels.counts, device=device).clamp(min=1)
    return counts.sum() / (len(counts) * counts)


def _positive_weights(labels: Labels, device: torch.device) -> Tensor | None:
    """Return weights `[C]` that balance the rows with and without each label."""
    if labels.weights == "none":
        return None
    counts = torch.tensor(labels.counts, dtype=torch.float32, device=device).clamp(min=1)
    return (labels.rows - counts).clamp(min=1) / counts


def probabilities(problem: str, logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return fp32 `[N, C]`: the probability of each label, or the number of a regression.

    The temperature applies only to single-label problems.
    """
    logits = logits.float()
    if problem == "regression":
        return logits
    return logits.sigmoid() if problem == "multi_label" else (logits / temperature).softmax(-1)


def measure(labels: Labels, logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Return the metrics of held-out rows: accuracy and macro-F1, or regression errors.

    Macro-F1 is the mean over the labels that occur or are predicted. In multi-label problems, the accuracy counts only
    exact matches.
    """
    if labels.problem == "regression":
        errors = measures.measure_numbers(targets.numpy(), logits.float().squeeze(-1).numpy())
        return {name: errors[name] for name in ("mean_absolute_error", "r2")}
    if labels.problem == "single_label":
        true_names, found_names = ([labels.names[i] for i in each] for each in (targets.tolist(), logits.argmax(-1)))
        figures = measures.measure(true_names, found_names, labels.names)
    else:
        found = probabilities(labels.problem, logits) >= THRESHOLD  # [N, C]
        figures = measures.measure_sets((targets > 0).numpy(), found.numpy(), labels.names)
    return {"accuracy": figures.accuracy, "macro_f1": figures.macro_f1}
