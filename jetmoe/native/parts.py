"""The weights of a decoder layer, named by what they compute. A family's layer returns them for the native step."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from jetmoe.attention import GroupedAttention
from jetmoe.experts.router import RouterChange
from jetmoe.norm import RMSNorm


class Part(NamedTuple):
    """A linear map: one of the tensors of a module, `[out, in]` or `[E, out, in]`."""

    module: nn.Module
    name: str = "weight"
    bias: Tensor | None = None
    """`[out]`; added once, after the sum over experts. Defaults to the bias of the module."""


class LayerParts(NamedTuple):
    attention: GroupedAttention
    activation: str
    """Of the gate half of `gate_up`, by its name in transformers."""
    attention_norm: RMSNorm
    projections: tuple[Part, ...]
    """Of queries, keys and values, in this order; queries only without attention experts."""
    output: Part
    feed_forward_norm: RMSNorm
    router: Part
    gate_up: Part
    down: Part
    changes: tuple[RouterChange | None, ...]
    """Of the routers, in the order of their kinds."""
    attention_router: Part | None = None
    query: Part | None = None
    """Query projections of attention experts; their output projections are `output`."""
    query_norm: RMSNorm | None = None
    key_norm: RMSNorm | None = None
    clip: float | None = None
    """Largest absolute value of queries, keys and values."""
