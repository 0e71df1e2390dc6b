"""Sample the next token: `Sampling` holds the settings, `Sampler` applies them with transformers' logits processors."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import MaxLen, MinLen
from pydantic import Field
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from studio.backend.settings import Settings, settings

STOP_TEXTS = "a list of up to 16 texts of 1 to 200 characters"
StopText = Annotated[str, MinLen(1), MaxLen(200)]


@settings
class Sampling(Settings):
    """Generation settings of an answer.

    Raises:
        StudioError: values of the wrong type or out of range; the message lists all of them.
    """

    max_new_tokens: int = Field(
        default=512,
        ge=1,
        le=32768,
        description="Maximum length of the answer in tokens, about three quarters of a word each.",
    )
    temperature: float = Field(
        default=0.7, ge=0, le=5, description="0 is greedy decoding; higher values are more random."
    )
    top_p: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="Sample from the most likely tokens that together reach this probability; 1 keeps all.",
    )
    top_k: int = Field(
        default=50, ge=0, le=100_000, description="Sample from this many of the most likely tokens; 0 keeps all."
    )
    min_p: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Drop tokens less likely than this fraction of the most likely one; 0 keeps all.",
    )
    repetition_penalty: float = Field(
        default=1.1, ge=0.5, le=5, description="Values above 1 make tokens that already occurred less likely."
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        le=2**63 - 1,
        description="The same seed and settings give the same answer with the same number of threads (on a GPU, once "
        "the model is compiled); leave empty for a random seed.",
    )
    stop: tuple[StopText, ...] = Field(
        default=(),
        max_length=16,
        json_schema_extra={"expected": STOP_TEXTS},
        description="End the answer before any of these texts.",
    )


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
