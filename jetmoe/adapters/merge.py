"""Merge an adapter into 16-bit or 4-bit weights."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from jetmoe.adapters.wrappers import outermost, unwrap
from jetmoe.experts.experts import Experts
from jetmoe.families import Family
from jetmoe.low_rank import LowRank, split_adapters
from jetmoe.nf4.parts import require_bitsandbytes
from jetmoe.nf4.tensor import copy_into, quantize


@torch.no_grad()
def merge(model: Any) -> dict[str, float]:
    """Add the active adapters to the weights and remove them.

    4-bit weights are dequantized, changed and quantized again. The change is small, and rounding loses a part of it.

    Returns:
        The rounding error of each part of the model, relative to the change: `|stored - exact| / |change|`.
    """
    lost: dict[str, list[Tensor]] = defaultdict(lambda: [torch.zeros(2)])
    family: Family = model.config.family
    for name, wrapper in outermost(model):
        layer, low_ranks = split_adapters(wrapper, torch.float32)
        for parameter, low_rank in low_ranks.items():
            lost[family.part_of(f"{name}.lora_")].append(_add(layer, parameter, low_rank))
    unwrap(model)
    sums = {part: torch.stack(errors).sum(0) for part, errors in lost.items()}
    return {part: float((error / change.clamp(min=1e-30)).sqrt()) for part, (error, change) in sums.items()}


def _add(layer: Any, parameter: str, low_rank: LowRank) -> Tensor:
    """Add `B A` to a weight; return `[2]`, the squared norms of the rounding error and of the change."""
    sums = torch.zeros(2)
    for e in range(len(low_rank.B)):
        change = low_rank.B[e] @ low_rank.A[e] * low_rank.scaling  # [out, in]
        exact = _read(layer, parameter, e) + change
        _write(layer, parameter, e, exact)
        sums += torch.stack([(_read(layer, parameter, e) - exact).square().sum(), change.square().sum()]).cpu()
    return sums


def _read(layer: Any, parameter: str, expert: int) -> Tensor:
    """Return one expert's weight `[out, in]` in fp32; the whole weight of a layer without experts."""
    if isinstance(layer, Experts):
        weight = layer.stored(parameter)
        return (
            weight[expert].float() if isinstance(weight, Tensor) else weight.expert(expert).dequantize(torch.float32)[0]
        )
    weight = getattr(layer, parameter)
    if (state := getattr(weight, "quant_state", None)) is None:
        return weight.float()
    require_bitsandbytes()
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, state).float()


def _write(layer: Any, parameter: str, expert: int, values: Tensor) -> None:
    """Store one expert's weight `[out, in]` in the format of the layer."""
    if not isinstance(layer, Experts):
        if getattr(getattr(layer, parameter), "quant_state", None) is not None:
            _write_linear_4bit(layer, values)
        else:
            getattr(layer, parameter).copy_(values)
    elif isinstance(weight := layer.stored(parameter), Tensor):
        weight[expert].copy_(values)
    else:
        dtype = getattr(layer, parameter).dtype
        rows = quantize(values.unsqueeze(0).to(dtype), weight.nested_absmax is not None).parts
        copy_into(weight.expert(expert), rows.tile() if weight.tiled else rows)


def _write_linear_4bit(layer: Any, weight: Tensor) -> None:
    from bitsandbytes.nn import Params4bit

    state, device = layer.weight.quant_state, layer.weight.device
    values: Any = Params4bit(
        weight.to(state.dtype), False, compress_statistics=state.nested, quant_type="nf4", module=layer
    )
    layer.weight = values.to(device)
    if getattr(layer, "tiles", None) is not None:
        layer.tile()
