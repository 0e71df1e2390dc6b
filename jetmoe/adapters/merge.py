"""Merge an adapter into 16-bit or 4-bit weights."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from jetmoe.adapters.audit import part_of
from jetmoe.adapters.wrappers import unwrap, wrappers
from jetmoe.low_rank import LowRank, split_adapters
from jetmoe.nf4.parts import require_bitsandbytes
from jetmoe.nf4.tensor import copy_into, quantize


@torch.no_grad()
def merge(model: nn.Module) -> dict[str, float]:
    """Add the active adapters to the weights and remove them.

    4-bit weights are dequantized, changed and quantized again. The change is small, and rounding loses a part of it.

    Returns:
        The rounding error of each part of the model, relative to the change: `|stored - exact| / |change|`.
    """
    lost: dict[str, list[Tensor]] = defaultdict(lambda: [torch.zeros(2)])
    for name, wrapper in wrappers(model):
        layer, low_rank = split_adapters(wrapper, torch.float32)
        if low_rank is not None:
            lost[part_of(f"{name}.lora_")].append(_add(layer, low_rank))
    unwrap(model)
    sums = {part: torch.stack(errors).sum(0) for part, errors in lost.items()}
    return {part: float((error / change.clamp(min=1e-30)).sqrt()) for part, (error, change) in sums.items()}


def _add(layer: Any, low_rank: LowRank) -> Tensor:
    """Add `B A` to a layer's weights; return `[2]`, the squared norms of the rounding error and of the change."""
    sums = torch.zeros(2)
    for e in range(len(low_rank.B)):
        change = low_rank.B[e] @ low_rank.A[e] * low_rank.scaling  # [out, in]
        exact = _read(layer, e) + change
        _write(layer, e, exact)
        sums += torch.stack([(_read(layer, e) - exact).square().sum(), change.square().sum()]).cpu()
    return sums


def _read(layer: Any, expert: int) -> Tensor:
    """Return one expert's weight `[out, in]` in fp32."""
    state = getattr(layer.weight, "quant_state", None)
    if state is not None:
        require_bitsandbytes()
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(layer.weight.data, state).float()
    if isinstance(layer, nn.Linear):
        return layer.weight.float()
    parts = layer.parts()
    return layer.weight[expert].float() if parts is None else parts.expert(expert).dequantize(torch.float32)[0]


def _write(layer: Any, expert: int, weight: Tensor) -> None:
    """Store one expert's weight `[out, in]` in the format of the layer."""
    if getattr(layer.weight, "quant_state", None) is not None:
        _write_linear_4bit(layer, weight)
    elif isinstance(layer, nn.Linear):
        layer.weight.copy_(weight)
    elif (parts := layer.parts()) is None:
        layer.weight[expert].copy_(weight)
    else:
        rows = quantize(weight.unsqueeze(0).to(layer.weight.dtype), parts.nested_absmax is not None).parts
        copy_into(parts.expert(expert), rows.tile() if parts.tiled else rows)


def _write_linear_4bit(layer: Any, weight: Tensor) -> None:
    from bitsandbytes.nn import Params4bit

    state, device = layer.weight.quant_state, layer.weight.device
    values: Any = Params4bit(
        weight.to(state.dtype), False, compress_statistics=state.nested, quant_type="nf4", module=layer
    )
    layer.weight = values.to(device)
    if getattr(layer, "tiles", None) is not None:
        layer.tile()
