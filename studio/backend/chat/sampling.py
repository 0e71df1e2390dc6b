"""Sample the next token: `Sampling` holds the settings, `Sampler` applies them with transformers' logits processors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from studio.errors import StudioError


@dataclass(frozen=True)
class Sampling:
    """Generation settings of an answer.

    Raises:
        StudioError: values out of range; the message lists all of them.
    """

    max_new_tokens: int = 512
    """Maximum length of the answer in tokens, about three quarters of a word each."""
    temperature: float = 0.7
    """0 is greedy decoding; higher values are more random."""
    top_p: float = 0.9
    """Sample from the most likely tokens that together reach this probability; 1 keeps all."""
    top_k: int = 50
    """Sample from this many of the most likely tokens; 0 keeps all."""
    min_p: float = 0.0
    """Drop tokens less likely than this fraction of the most likely one; 0 keeps all."""
    repetition_penalty: float = 1.1
    """Values above 1 make tokens that already occurred less likely."""
    seed: int | None = None
    """The same seed and settings give the same answer; leave empty for a random seed."""
    stop: tuple[str, ...] = ()
    """End the answer before any of these texts."""

    def __post_init__(self) -> None:
        ranges = {
            "max_new_tokens": (1, 32768),
            "temperature": (0.0, 5.0),
            "top_p": (0.0, 1.0),
            "top_k": (0, 100_000),
            "min_p": (0.0, 1.0),
            "repetition_penalty": (0.5, 5.0),
        }
        problems = [
            f"{name} must be from {low} to {high}, not {getattr(self, name)!r}"
            for name, (low, high) in ranges.items()
            if not _within(getattr(self, name), low, high)
        ]
        if self.top_p == 0:
            problems.append("top_p must be above 0")
        if self.seed is not None and not _within(self.seed, 0, 2**63 - 1):
            problems.append(f"seed must be a whole number of at least 0, not {self.seed!r}")
        if len(self.stop) > 16 or any(not isinstance(text, str) or not 0 < len(text) <= 200 for text in self.stop):
            problems.append("stop takes up to 16 texts of 1 to 200 characters")
        if problems:
            raise StudioError("Change these settings: " + "; ".join(problems) + ".")


def _within(value: object, low: float, high: float) -> bool:
    """Check the range; the value must be an integer if the bounds are integers."""
    kinds = (int,) if isinstance(low, int) else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        return False
    return math.isfinite(value) and low <= value <= high


class Sampler:
    """Sample tokens with one `Sampling`."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.generator = torch.Generator()
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(sampling.seed)
        self.penalty = (
            RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)
            if sampling.repetition_penalty != 1.0
            else LogitsProcessorList()
        )
        self.warpers = LogitsProcessorList()
        if sampling.temperature not in (0.0, 1.0):
            self.warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_p < 1.0:
            self.warpers.append(TopPLogitsWarper(float(sampling.top_p)))
        if sampling.min_p > 0.0:
            self.warpers.append(MinPLogitsWarper(float(sampling.min_p)))

    def choose(self, logits: Tensor, seen: Tensor) -> tuple[int, float]:
        """Return the next token id and its log-probability in nats.

        Args:
            logits: fp32 `[1, vocabulary]`; the log-probability is computed from these, before any processor.
            seen: `[1, tokens so far]`, for the repetition penalty.
        """
        logits = logits.cpu()
        scores = self.penalty(seen, logits.clone())  # type: ignore[arg-type]  # [1, V]
        token = int(scores.argmax()) if self.sampling.temperature == 0.0 else self._draw(scores)
        return token, float(logits[0, token] - logits.logsumexp(-1))

    def _draw(self, scores: Tensor) -> int:
        # Top-k first: the other processors then sort k scores instead of the whole vocabulary.
        ids = None
        if 0 < self.sampling.top_k < scores.shape[-1]:
            scores, ids = scores.topk(self.sampling.top_k)  # [1, k]
        probs = self.warpers(None, scores).softmax(-1)  # type: ignore[arg-type]
        drawn = int(torch.multinomial(probs, 1, generator=self.generator))
        return drawn if ids is None else int(ids[0, drawn])
