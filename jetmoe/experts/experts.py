"""Expert layers, whose weights are tensors `[E, out, in]`.

A router decides once per layer (`Routing`), and all expert products of the layer use this decision. LoRA adapters
(`low_rank.py`) are computed separately and added to the product. Shape letters are declared in `jetmoe/routing.py`;
`A = T * K` assignments of tokens to experts, I the width inside a feed-forward expert.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from jetmoe.autograd import is_autocast, is_traced
from jetmoe.experts.assignments import Routing, collect, combine, few_tokens, permute, repeat_tokens
from jetmoe.experts.products import (
    Product,
    Weight,
    chosen_product,
    dispatched_product,
    gated_product,
)
from jetmoe.low_rank import AdapterError, LowRank, is_wrapped, split_adapters, why_not_split
from jetmoe.nf4.parts import SUFFIXES, Parts
from jetmoe.nf4.tensor import NF4Tensor, stored_bytes

logger = logging.get_logger(__name__)

Activation = Callable[[Tensor], Tensor]
LowRanks = Mapping[str, LowRank]
"""The active adapters by the name of the tensor that they change."""
NO_LOW_RANKS: LowRanks = {}


class Experts(nn.Module):
    """A layer of E experts. Each of its `tensors` is a parameter `[E, out, in]`, an `NF4Tensor` if it is in 4 bits."""

    tensors: tuple[str, ...] = ("weight",)

    def __init__(self) -> None:
        super().__init__()
        self._parts: dict[str, Parts | None] = {}

    def stored(self, name: str = "weight") -> Weight:
        """Return a weight, in 4 bits as plain tensors."""
        # A compiled graph can't contain a 4-bit parameter itself.
        if not is_traced():
            weight = getattr(self, name)
            self._parts[name] = weight.parts if isinstance(weight, NF4Tensor) else None
        return self._parts[name] or getattr(self, name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        super().register_parameter(name, param)
        self._parts[name] = param.parts if isinstance(param, NF4Tensor) else None

    def _apply(self, fn, recurse: bool = True):
        # `param.data = ...` would leave the codes of a 4-bit weight where they are.
        quantized = {name: one for name, one in self._parameters.items() if isinstance(one, NF4Tensor)}
        for name, weight in quantized.items():
            setattr(self, name, nn.Parameter(fn(weight), requires_grad=False))
        return self if quantized else super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        return ", ".join(_described(name, getattr(self, name)) for name in self.tensors)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, weight in self._parameters.items():
            if isinstance(weight, NF4Tensor):
                rows = weight.parts.untile()._asdict()
                destination |= {f"{prefix}{name}{SUFFIXES[k]}": part for k, part in rows.items() if part is not None}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args) -> None:
        for name in self.tensors:
            names = {field: f"{prefix}{name}{suffix}" for field, suffix in SUFFIXES.items()}
            if names["absmax"] in state_dict:
                parts = Parts(**{field: state_dict.pop(name, None) for field, name in names.items()})
                state_dict[names["codes"]] = NF4Tensor(parts, getattr(self, name).dtype)
        super()._load_from_state_dict(state_dict, prefix, *args)


class LinearExperts(Experts):
    """E linear maps without bias."""

    def __init__(self, num_experts: int, input_size: int, output_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, output_size, input_size))

    def forward(self, rows: Tensor, routing: Routing, product: Product, low_ranks: LowRanks = NO_LOW_RANKS) -> Tensor:
        """Apply one of `products.py`; `[n, in]` -> `[A, out]`. A module call, so that hooks see it."""
        return product(self.stored(), low_ranks.get("weight"), rows, routing)


class GatedExperts(Experts):
    """E gated feed-forward networks without bias, in the layout of transformers: gate and up projection in one."""

    tensors = ("gate_up_proj", "down_proj")

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int, activation: Activation) -> None:
        super().__init__()
        self.act_fn = activation
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * intermediate_size, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden_size, intermediate_size))

    def forward(self, tokens: Tensor, routing: Routing, low_ranks: LowRanks = NO_LOW_RANKS) -> Tensor:
        """Apply each token's experts and sum them by gate: `[T, D]` -> `[T, D]`."""

        def apply(name: str, product: Product, rows: Tensor) -> Tensor:
            return product(self.stored(name), low_ranks.get(name), rows, routing)

        first, second = (partial(apply, name) for name in self.tensors)
        return feed_forward(first, second, self.act_fn, tokens, routing)


def call_experts(experts: Any, rows: Tensor, *args: Any) -> Tensor:
    """Call the layer with its adapters split off, or through PEFT's wrappers where they are more than plain LoRA."""
    if is_autocast(rows):
        rows = rows.to(torch.get_autocast_dtype(rows.device.type))
    if not is_wrapped(experts):
        return experts(rows, *args)
    if reason := why_not_split(experts):
        _report_unsplit(experts, reason)
        return experts(rows, *args)
    layer, low_ranks = split_adapters(experts, rows.dtype)
    return layer(rows, *args, low_ranks=low_ranks)


def feed_forward(
    first: Callable[[Product, Tensor], Tensor],
    second: Callable[[Product, Tensor], Tensor],
    activation: Activation,
    tokens: Tensor,
    routing: Routing,
) -> Tensor:
    """Apply each token's gated feed-forward experts and sum them by gate: `[T, D]` -> `[T, D]`.

    Args:
        first: applies a product with the gate and up projections, `[E, 2 * I, D]`, to rows.
        second: applies a product with the down projections, `[E, D, I]`, to rows.
    """

    def gated(rows: Tensor) -> Tensor:
        gate, up = rows.chunk(2, dim=-1)
        return activation(gate) * up  # [n, I]

    def weighed(rows: Tensor, gates: Tensor) -> Tensor:
        # Apply the gates here, so that the last product need not be saved.
        return gated(rows) * gates

    if few_tokens(routing):
        rows = gated(first(chosen_product, repeat_tokens(tokens, routing)))  # [A, I]
        return combine(second(chosen_product, rows), routing.gates)
    rows = first(dispatched_product, tokens)  # [A, 2 * I]
    gates = permute(routing.gates.flatten().unsqueeze(1), routing.sorted().order, routing.sorted().inverse)  # [A, 1]
    return collect(second(partial(gated_product, gates=gates, before=weighed), rows), routing)


def _described(name: str, weight: Tensor) -> str:
    stored = f" nf4 {stored_bytes(weight) / 2**20:.1f} MiB" if isinstance(weight, NF4Tensor) else ""
    return f"{name}={list(weight.shape)}{stored}"


@torch.compiler.disable
def _report_unsplit(experts: Any, reason: str) -> None:
    layer = experts.get_base_layer()
    quantized = any(isinstance(getattr(layer, name), NF4Tensor) for name in layer.tensors)
    if quantized and not experts.disable_adapters:
        raise AdapterError(
            f"An adapter on 4-bit experts can't be computed because {reason}; 4-bit experts support plain LoRA without "
            "hooks. Change the adapter, remove the hooks, or load the model in 16 bits."
        )
    logger.warning_once(
        f"PEFT computes the adapters of some experts, which builds their full weights, because {reason}."
    )
