"""Measure how far the routing of one text drifted between two models, such as base model and adapter.

    drift(base, tuned, unit="group").flip_rate      # [L, N]

Both traces must hold the same tokens, with full probabilities. Measures: routing overlap (OLMoE, arXiv 2409.02060,
equation 5 with the base model in place of the last checkpoint), flips of the strongest expert, Jensen-Shannon
divergence, and load shift (total variation).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jetmoe.routing import RoutingTrace
from studio.analysis.load import Unit, chosen_units, load, strongest, unit_count


@dataclass(frozen=True)
class Drift:
    """One figure per router, float64 `[L, N]`."""

    flip_rate: np.ndarray
    """Share of tokens whose strongest unit changed, 0 to 1."""
    overlap: np.ndarray
    """Share of a token's units that stayed, 0 to 1."""
    js: np.ndarray
    """Mean Jensen-Shannon divergence of the routers' probabilities, in nats, 0 to ln 2."""
    load_shift: np.ndarray
    """Half the sum of the absolute changes in load, 0 to 1."""


def drift(base: RoutingTrace, tuned: RoutingTrace, unit: Unit) -> Drift:
    """Return the drift from `base` to `tuned`.

    Raises:
        ValueError: the traces hold different tokens, or lack probabilities.
    """
    if not np.array_equal(base.token_ids, tuned.token_ids) or base.probs is None or tuned.probs is None:
        raise ValueError("Drift compares two traces of the same tokens, taken with their probabilities.")
    picked, now = (_membership(trace, unit) for trace in (base, tuned))  # [L, N, T, U]
    return Drift(
        flip_rate=(strongest(base, unit) != strongest(tuned, unit)).mean(axis=-1),
        overlap=((picked & now).sum(axis=-1) / picked.sum(axis=-1)).mean(axis=-1),
        js=_jensen_shannon(base.probs.astype(np.float64), tuned.probs.astype(np.float64)).mean(axis=-1),
        load_shift=np.abs(load(base, unit) - load(tuned, unit)).sum(axis=-1) / 2,
    )


def broken_slot_sets(trace: RoutingTrace) -> int:
    """Count how often the K picks of a router are not all in one group, on a model with tied experts."""
    groups = trace.groups[trace.experts]  # [L, N, T, K]
    return int((groups != groups[..., :1]).any(axis=-1).sum())


def _membership(trace: RoutingTrace, unit: Unit) -> np.ndarray:
    """Return bool `[L, N, T, U]`: whether a token uses a unit."""
    used = np.zeros((*trace.entropy.shape, unit_count(trace, unit)), np.bool_)
    np.put_along_axis(used, chosen_units(trace, unit).astype(np.intp), True, axis=-1)
    return used


def _jensen_shannon(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return the divergence along the last axis, clamped at 0 because of half-precision rounding."""
    p, q = (one / one.sum(axis=-1, keepdims=True) for one in (p, q))
    middle = (p + q) / 2
    return np.maximum((_kl(p, middle) + _kl(q, middle)) / 2, 0)


def _kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, p * np.log(p / q), 0).sum(axis=-1)
