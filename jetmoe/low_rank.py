"""LoRA adapters on linear maps: `B (A x)` is added to the product, `W + B A` is never formed.

    layer, low_rank = split_adapters(module, torch.bfloat16)    # the layer under PEFT's wrappers, its active adapters

Adapters are PEFT's modules and files; this module reads their factors. The expert index varies slowest in `lora_A`
`[E * R, in]` and fastest in `lora_B` `[out, R * E]`. Several active adapters are concatenated along R. Shape letters
are declared in `jetmoe/routing.py`; a plain linear layer is a stack of one expert, E = 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class LowRank(NamedTuple):
    """Factors of the active adapters of E linear maps, including the scaling."""

    A: Tensor  # [E, R, in]
    B: Tensor  # [E, out, R]


def split_adapters(module: nn.Module, dtype: torch.dtype) -> tuple[Any, LowRank | None]:
    """Return the layer under PEFT's wrappers and its active adapters in `dtype`, or None if they add nothing."""
    layer: Any = module
    adapters = []
    while hasattr(layer, "base_layer"):
        if not (layer.disable_adapters or layer.merged):
            adapters += [(layer, name) for name in layer.active_adapters if name in layer.lora_A]
        layer = layer.base_layer
    if torch.compiler.is_dynamo_compiling():
        # Keep the wrappers out of a compiled graph: an earlier eager forward pass has stored the factors here.
        return layer, getattr(layer, "low_rank", None)
    if not adapters:
        if hasattr(layer, "low_rank"):
            layer.low_rank, layer.low_rank_state = None, []
        return layer, None
    if torch.is_grad_enabled():
        # Don't cache: a fused optimizer changes the factors without incrementing their version.
        layer.low_rank_state = []
        return layer, _side_by_side([_factors(*adapter, dtype) for adapter in adapters])
    return layer, _kept(layer, adapters, dtype)


def _kept(layer: Any, adapters: list[tuple[Any, str]], dtype: torch.dtype) -> LowRank | None:
    """Return contiguous factors for inference, cached until they change; skip adapters that are zero."""
    weights = [part[name].weight for wrapper, name in adapters for part in (wrapper.lora_A, wrapper.lora_B)]
    scaling = [wrapper.scaling[name] for wrapper, name in adapters]
    state = [(weight, weight._version, weight.data_ptr(), scaling, dtype) for weight in weights]
    kept = getattr(layer, "low_rank_state", [])
    if len(kept) != len(state) or any(a is not b or v != w for (a, *v), (b, *w) in zip(kept, state, strict=True)):
        factors = [_factors(*adapter, dtype) for adapter in adapters if _adds(*adapter)]
        layer.low_rank = _side_by_side(factors) if factors else None
        layer.low_rank_state = state
    return layer.low_rank


def _adds(wrapper: Any, name: str) -> bool:
    return bool(wrapper.lora_B[name].weight.any())


def _factors(wrapper: Any, name: str, dtype: torch.dtype) -> LowRank:
    A, B, experts = wrapper.lora_A[name].weight, wrapper.lora_B[name].weight, getattr(wrapper, "num_experts", 1)
    A = A.view(experts, -1, A.shape[-1])  # [E, R, in]
    B = B.view(B.shape[0], -1, experts).permute(2, 0, 1) * wrapper.scaling[name]  # [E, out, R]
    return LowRank(A.to(dtype), B.to(dtype))


def _side_by_side(factors: list[LowRank]) -> LowRank:
    if len(factors) == 1:
        return LowRank(factors[0].A, factors[0].B.contiguous())
    return LowRank(torch.cat([one.A for one in factors], dim=1), torch.cat([one.B for one in factors], dim=2))


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Disable all adapters of the model inside the block."""
    wrappers: list[Any] = [module for module in model.modules() if hasattr(module, "base_layer")]
    before = [wrapper._disable_adapters for wrapper in wrappers]
    for wrapper in wrappers:
        wrapper._disable_adapters = True
    try:
        yield
    finally:
        for wrapper, disabled in zip(wrappers, before, strict=True):
            wrapper._disable_adapters = disabled
