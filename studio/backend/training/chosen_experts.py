"""Train some experts only: those that the data uses most, or those of a specialist."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from jetmoe import RoutingRecorder
from jetmoe.adapters.hot_experts import hot_experts, mask_gradients
from jetmoe.config import MoeConfig
from jetmoe.specialists import only, replica
from studio.analysis.load import assignments
from studio.backend.data.packing import Feature
from studio.errors import StudioError

# The hot experts are chosen from the routing of this many training tokens.
HOT_TOKENS = 16_384


def train_hot_experts(base: Any, rows: Sequence[Feature], share: float) -> str:
    """Mask the gradients of all but the hot experts; return a sentence with the number of hot experts."""
    hot = hot_experts(_load_on(base, rows), share)  # [L, N, E]
    mask_gradients(base, hot)
    per_router = hot.sum(axis=-1)
    return (
        f"Only {int(hot.sum())} of {hot.size} experts are trained, {per_router.min()} to {per_router.max()} of "
        f"{hot.shape[-1]} in a router: those that take {share:.0%} of the routing on your data."
    )


def specialist_experts(config: MoeConfig, text: str) -> list[int]:
    """Return the experts that the setting `specialist` names.

    Raises:
        StudioError: the model has no such experts, or its routers select more than these.
    """
    kind, _, numbers = text.partition(" ")
    try:
        experts = replica(config, int(numbers)) if kind == "replica" else [int(each) for each in numbers.split(",")]
        only(config, experts)
    except ValueError as error:
        raise StudioError(f"{error} (specialist: {text})") from error
    return experts


def train_specialist(base: Any, text: str) -> str:
    """Route every token to the specialist's experts; return a sentence that says so."""
    experts = specialist_experts(base.config, text)
    only(base.config, experts).apply(base)
    return (
        f"Every token of this run is routed to the experts {', '.join(map(str, experts))}, and only these are trained. "
        "In a chat the model's own routers decide, until `python -m studio compose` fits them."
    )


@torch.no_grad()
def _load_on(base: Any, rows: Sequence[Feature]) -> np.ndarray:
    """Return each expert's share of the assignments on the training rows, float64 `[L, N, E]`."""
    counts: Any = 0
    tokens = 0
    for row in rows:
        for token_ids, _ in row:
            recorder = RoutingRecorder(base, len(token_ids))
            ids = torch.tensor([token_ids], device=base.device)
            base.model(input_ids=ids, use_cache=False, recorder=recorder)
            trace = recorder.trace(token_ids, [""] * len(token_ids), True)
            counts = counts + assignments(trace, "expert")  # [L, N, E]
            tokens += len(token_ids)
        if tokens >= HOT_TOKENS:
            break
    return counts / counts.sum(axis=-1, keepdims=True)
