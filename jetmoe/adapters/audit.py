"""Count the parameters that an adapter trains, by part of the model."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jetmoe.adapters.wrappers import wrappers
from jetmoe.families import Family
from jetmoe.nf4.tensor import NF4Tensor


@dataclass(frozen=True)
class AuditRow:
    """One part of a model: its number of parameters, how many are trained, and how they are stored."""

    part: str
    parameters: int
    trained: int
    """Numbers that an optimizer updates, in LoRA factors or in the part itself."""
    rank: int
    """LoRA rank; 0 without an adapter."""
    dtype: str
    """As loaded; "nf4" if in 4 bits."""
    four_bit: float
    """Share of the parameters in 4 bits, 0 to 1."""


def audit(model: Any) -> list[AuditRow]:
    """Count what will be trained, part by part, in the model itself."""
    rows = []
    family: Family = model.config.family
    ranks, trained = _trained_by_part(model, family)
    counts: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if ".lora_" not in name and ".modules_to_save." not in name:
            counts[family.part_of(name)].append(_count_and_dtype(parameter))
    for part, tensors in counts.items():
        total = sum(count for count, _ in tensors)
        four_bit = sum(count for count, dtype in tensors if dtype == "nf4")
        dtypes = ", ".join(sorted({dtype for _, dtype in tensors}))
        rows.append(AuditRow(part, total, trained[part], ranks[part], dtypes, four_bit / total))
    return sorted(rows, key=lambda row: [*family.parts].index(row.part))


def _trained_by_part(model: nn.Module, family: Family) -> tuple[dict[str, int], dict[str, int]]:
    ranks: dict[str, int] = defaultdict(int)
    trained: dict[str, int] = defaultdict(int)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ".lora_" not in name:
            trained[family.part_of(name)] += parameter.numel()
    for name, wrapper in wrappers(model):
        part = family.part_of(f"{name}.lora_")
        for adapter in [one for one in wrapper.active_adapters if one in wrapper.lora_A]:
            factors = [wrapper.lora_A[adapter].weight, wrapper.lora_B[adapter].weight]
            size = sum(factor.numel() for factor in factors if factor.requires_grad)
            trained[part] += round(size * getattr(wrapper, "hot_share", 1.0))
            ranks[part] = wrapper.r[adapter]
    return ranks, trained


def _count_and_dtype(parameter: Tensor) -> tuple[int, str]:
    state = getattr(parameter, "quant_state", None)  # bitsandbytes packs the weights
    if state is not None:
        return torch.Size(state.shape).numel(), "nf4"
    return parameter.numel(), "nf4" if isinstance(parameter, NF4Tensor) else str(parameter.dtype).removeprefix("torch.")
