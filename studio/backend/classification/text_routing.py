"""Count how often each expert is chosen in whole texts. The texts run through the model in batches.

    counts = expert_counts(model, [[1, 7, 9], [1, 4]], pad_id)      # int64 [T, L, N, E]

T texts; the other letters are declared in `jetmoe/routing.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from jetmoe import RoutingRecorder
from studio.backend.classification.head import padded
from studio.backend.data.packing import in_batches

BATCH_TOKENS = 2048


@torch.no_grad()
def expert_counts(model: Any, texts: Sequence[Sequence[int]], pad_id: int) -> np.ndarray:
    """Return int64 `[T, L, N, E]`: the expert assignments of each text's tokens, in the order of the texts.

    Args:
        model: with or without a head; only the decoder runs.
    """
    counts: dict[int, np.ndarray] = {}
    for batch in in_batches([*map(len, texts)], BATCH_TOKENS):
        counts |= zip(batch, _counted(model, [texts[i] for i in batch], pad_id), strict=True)
    return np.stack([counts[i] for i in range(len(texts))])


def _counted(model: Any, texts: Sequence[Sequence[int]], pad_id: int) -> np.ndarray:
    batch = padded(texts, pad_id)
    rows, length = batch["input_ids"].shape
    recorder = RoutingRecorder(model, rows * length)
    inputs = {name: each.to(recorder.logits.device) for name, each in batch.items()}
    recorder.model(**inputs, use_cache=False, recorder=recorder)
    experts = recorder.experts.cpu().long()  # [B * S, L * N, K]
    chosen = torch.zeros(*experts.shape[:2], recorder.logits.shape[-1], dtype=torch.int64)  # [B * S, L * N, E]
    chosen.scatter_add_(-1, experts, torch.ones_like(experts))
    chosen *= batch["attention_mask"].reshape(-1, 1, 1)
    counts: np.ndarray = chosen.reshape(rows, length, *chosen.shape[1:]).sum(dim=1).numpy()  # [B, L * N, E]
    return counts.reshape(rows, -1, len(recorder.kinds), counts.shape[-1])
