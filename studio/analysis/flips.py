"""Find the tokens that an adapter routes differently from the base model.

flips(base, trace, unit="group")[layer, kind, token]      # whether the strongest unit changed
flip_shares(base, trace, unit="group").all                # over all layers, kinds and tokens
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jetmoe.routing import RoutingTrace
from studio.analysis.load import Unit, strongest


class FlipShares(NamedTuple):
    """Shares of flipped strongest units, 0 to 1."""

    all: float
    by_kind: dict[str, float]


def flips(base: RoutingTrace, trace: RoutingTrace, unit: Unit) -> np.ndarray:
    """Return bool `[L, N, T]`: whether a token's strongest unit differs from the base model's.

    Raises:
        ValueError: the traces do not hold the same tokens in the same routers.
    """
    same_routers = base.experts.shape[:2] == trace.experts.shape[:2] and np.array_equal(base.groups, trace.groups)
    if not same_routers or not np.array_equal(base.token_ids, trace.token_ids):
        raise ValueError("Flips compare two traces of the same tokens in the same routers.")
    return strongest(base, unit) != strongest(trace, unit)


def flip_shares(base: RoutingTrace, trace: RoutingTrace, unit: Unit) -> FlipShares:
    """Return the shares of flipped strongest units.

    Raises:
        ValueError: as of `flips`, or there are no tokens.
    """
    if not len(trace):
        raise ValueError("Shares of no tokens are not defined.")
    flipped = flips(base, trace, unit)  # [L, N, T]
    by_kind = flipped.mean(axis=(0, 2))  # [N]
    return FlipShares(float(flipped.mean()), dict(zip(trace.kinds, by_kind.tolist(), strict=True)))
