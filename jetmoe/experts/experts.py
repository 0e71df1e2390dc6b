"""The expert layer `[E, out, in]`, the only place where tokens are multiplied by expert weights.

A router decides once per layer (`Routing`), and all expert products of the layer use this decision. For a few tokens
(decode), products run in token order and read only the chosen experts' weights. For more tokens (prefill, training),
they are sorted by expert. LoRA adapters (`low_rank.py`) are computed separately and added to the product. Shape letters
are declared in `jetmoe/routing.py`; `A = T * K` assignments of tokens to experts.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import logging

from jetmoe.autograd import is_autocast, is_traced, is_transformed
from jetmoe.experts.assignments import Routing, dispatch
from jetmoe.experts.frozen_linear import Before, FrozenLinear, GatedLinear, expert_matrix
from jetmoe.low_rank import AdapterError, LowRank, is_plain_linear, is_wrapped, split_adapters, why_not_split
from jetmoe.nf4 import cpu as nf4_cpu
from jetmoe.nf4.parts import BLOCK, SUFFIXES, Parts, nested_code, require_bitsandbytes
from jetmoe.nf4.tensor import NF4Tensor, stored_bytes

logger = logging.get_logger(__name__)
# Up to this many rows, a compiled product is a generated loop instead of a call into a matrix library.
FEW_ROWS = 4
NO_ADAPTER = (None, None, 1.0)
# Off until a table in tests/benchmarks/results shows it correct and faster on a GPU. JETMOE_TRITON=1 enables it.
USE_TRITON = os.environ.get("JETMOE_TRITON") == "1"


class JetMoeExperts(nn.Module):
    """E linear maps without bias. `weight` is `[E, out, in]`, an `NF4Tensor` if it is in 4 bits."""

    def __init__(self, num_experts: int, input_size: int, output_size: int) -> None:
        super().__init__()
        self._parts: Parts | None = None
        self.weight = nn.Parameter(torch.empty(num_experts, output_size, input_size))

    def forward(self, rows: Tensor, routing: Routing, product: Product, low_rank: LowRank | None = None) -> Tensor:
        """Apply one of the products below; `[n, in]` -> `[A, out]`. A module call, so that hooks see it."""
        return product(self, low_rank, rows, routing)

    def parts(self) -> Parts | None:
        """Return the 4-bit weight as plain tensors, or None if it is not in 4 bits."""
        # A compiled graph can't contain the parameter itself.
        if not is_traced():
            self._parts = self.weight.parts if isinstance(self.weight, NF4Tensor) else None
        return self._parts

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        super().register_parameter(name, param)
        self._parts = param.parts if isinstance(param, NF4Tensor) else None

    def _apply(self, fn, recurse: bool = True):
        # `param.data = ...` would leave the codes of a 4-bit weight where they are.
        if isinstance(self.weight, NF4Tensor):
            self.weight = nn.Parameter(fn(self.weight), requires_grad=False)
            return self
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        experts, output_size, input_size = self.weight.shape
        stored = f", nf4, {stored_bytes(self.weight) / 2**20:.1f} MiB" if isinstance(self.weight, NF4Tensor) else ""
        return f"experts={experts}, in={input_size}, out={output_size}{stored}"

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if isinstance(self.weight, NF4Tensor):
            rows = self.weight.parts.untile()._asdict()
            destination |= {f"{prefix}weight{SUFFIXES[k]}": part for k, part in rows.items() if part is not None}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args) -> None:
        names = {field: f"{prefix}weight{suffix}" for field, suffix in SUFFIXES.items()}
        if names["absmax"] in state_dict:
            parts = Parts(**{field: state_dict.pop(name, None) for field, name in names.items()})
            state_dict[names["codes"]] = NF4Tensor(parts, self.weight.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args)


Product = Callable[[JetMoeExperts, LowRank | None, Tensor, Routing], Tensor]


def dispatched_linear(experts: nn.Module, tokens: Tensor, routing: Routing) -> Tensor:
    """Multiply each token by its experts, sorted by expert: `[T, in]` -> `[A, out]`."""
    return _call(experts, _dispatched_product, tokens, routing)


def gated_linear(experts: nn.Module, rows: Tensor, gates: Tensor, routing: Routing, before: Before) -> Tensor:
    """Apply `before` to sorted assignments, then multiply them by their expert: `[A, *]` and `[A, 1]` -> `[A, out]`.

    The backward pass recomputes `before(rows, gates)` `[n, in]`, so that its result need not be saved.
    """
    return _call(experts, partial(_gated_product, gates=gates, before=before), rows, routing)


def sorted_linear(experts: nn.Module, rows: Tensor, routing: Routing) -> Tensor:
    """Multiply each sorted assignment by its expert and add the adapters: `[A, in]` -> `[A, out]`."""
    return _call(experts, _sorted_product, rows, routing)


def chosen_linear(experts: nn.Module, rows: Tensor, routing: Routing) -> Tensor:
    """Multiply each assignment by its expert and add the adapters, in token order: `[A, in]` -> `[A, out]`.

    Reads only the chosen weights.
    """
    return _call(experts, _chosen_product, rows, routing)


def _call(experts: Any, product: Product, rows: Tensor, routing: Routing) -> Tensor:
    """Call the layer with its adapters split off, or through PEFT's wrappers where they are more than plain LoRA."""
    if is_autocast(rows):
        rows = rows.to(torch.get_autocast_dtype(rows.device.type))
    if not is_wrapped(experts):
        return experts(rows, routing, product)
    if reason := why_not_split(experts):
        _report_unsplit(experts, reason)
        return experts(rows, routing, product)
    layer, low_rank = split_adapters(experts, rows.dtype)
    return layer(rows, routing, product, low_rank)


@torch.compiler.disable
def _report_unsplit(experts: Any, reason: str) -> None:
    if isinstance(experts.get_base_layer().weight, NF4Tensor) and not experts.disable_adapters:
        raise AdapterError(
            f"An adapter on 4-bit experts can't be computed because {reason}; 4-bit experts support plain LoRA without "
            "hooks. Change the adapter, remove the hooks, or load the model in 16 bits."
        )
    logger.warning_once(
        f"PEFT computes the adapters of some experts, which builds their full weights, because {reason}."
    )


def project(linear: Any, rows: Tensor) -> Tensor:
    """Return `linear(rows)`; compiled for a few rows, it is a loop that Inductor fuses with its neighbours."""
    is_loop = torch.compiler.is_dynamo_compiling() and rows.shape[:-1].numel() <= FEW_ROWS
    return split_linear(linear, rows) if is_loop and not why_not_split(linear) else linear(rows)


def split_linear(linear: Any, rows: Tensor) -> Tensor:
    """Compute a linear layer with its adapters split off, in the dtype of the rows: `[..., in]` -> `[..., out]`."""
    layer, low_rank = split_adapters(linear, rows.dtype)
    result = product(layer.weight.to(rows.dtype), rows) if is_plain_linear(layer) else layer(rows)
    if low_rank is None:
        return result
    return result + product(low_rank.B[0], product(low_rank.A[0], rows)) * low_rank.scaling


def product(weight: Tensor, rows: Tensor) -> Tensor:
    """Return `rows @ weight.T` for `[..., in]` rows and an `[out, in]` weight."""
    if torch.compiler.is_dynamo_compiling() and rows.shape[:-1].numel() <= FEW_ROWS:
        return (weight.float() * rows.float().unsqueeze(-2)).sum(-1).to(rows.dtype)
    # Flatten first: for a slice with more dimensions, matmul makes a batch and copies the weight.
    return F.linear(rows.reshape(-1, rows.shape[-1]), weight).view(*rows.shape[:-1], -1)


def _dispatched_product(layer: JetMoeExperts, low_rank: LowRank | None, tokens: Tensor, routing: Routing) -> Tensor:
    if routing.top_k > 1 and _expert_by_expert(layer, tokens, low_rank):  # with top_k 1, dispatch makes no copies
        return _frozen_linear(layer, low_rank, tokens, routing, routing.top_k)
    return _sorted_product(layer, low_rank, dispatch(tokens, routing), routing)


def _gated_product(
    layer: JetMoeExperts, low_rank: LowRank | None, rows: Tensor, routing: Routing, gates: Tensor, before: Before
) -> Tensor:
    if _expert_by_expert(layer, rows, low_rank):
        gates = gates.to(rows.dtype)
        return GatedLinear.apply(rows, gates, *(low_rank or NO_ADAPTER), _weight(layer), routing.sorted(), before)
    return _sorted_product(layer, low_rank, before(rows, gates).to(rows.dtype), routing)


def _sorted_product(layer: JetMoeExperts, low_rank: LowRank | None, rows: Tensor, routing: Routing) -> Tensor:
    if _expert_by_expert(layer, rows, low_rank):
        return _frozen_linear(layer, low_rank, rows, routing, 1)
    result = _sorted_linear(_weight(layer), rows, routing)
    if low_rank is None:
        return result
    inner = _sorted_linear(low_rank.A, rows, routing) * low_rank.scaling  # [A, R]
    return result + _sorted_linear(low_rank.B, inner, routing)


def _chosen_product(layer: JetMoeExperts, low_rank: LowRank | None, rows: Tensor, routing: Routing) -> Tensor:
    result = _chosen_linear(layer, rows, routing)
    if low_rank is None:
        return result
    ids = routing.experts.flatten()  # [A]
    inner = (low_rank.A[ids].float() * rows.float().unsqueeze(1)).sum(-1) * low_rank.scaling  # [A, R]
    return result + (low_rank.B[ids].float() * inner.unsqueeze(1)).sum(-1).to(result.dtype)  # [A, out]


def _weight(layer: JetMoeExperts) -> Tensor | Parts:
    return layer.parts() or layer.weight


def _expert_by_expert(layer: Any, rows: Tensor, low_rank: LowRank | None) -> bool:
    """Return whether to use `FrozenLinear`: not for trainable weights, nor if one call computes all experts."""
    if is_traced() or is_transformed():
        return False
    if torch.is_grad_enabled() and layer.weight.requires_grad:
        return False
    if isinstance(layer.weight, NF4Tensor):
        return torch.is_grad_enabled() and (rows.requires_grad or low_rank is not None)
    return not (rows.is_cuda and rows.dtype == torch.bfloat16)


def _frozen_linear(layer: Any, low_rank: LowRank | None, rows: Tensor, routing: Routing, top_k: int) -> Tensor:
    return FrozenLinear.apply(rows, *(low_rank or NO_ADAPTER), _weight(layer), routing.sorted(), top_k)


def _sorted_linear(weight: Tensor | Parts, rows: Tensor, routing: Routing) -> Tensor:
    """Multiply each sorted row by its expert's `[out, in]`: `[A, in]` -> `[A, out]`."""
    if isinstance(weight, Parts):
        return _sorted_nf4_linear(weight, rows, routing)
    if weight.is_cuda and weight.dtype == rows.dtype == torch.bfloat16 and not _unaligned(weight):
        return F.grouped_mm(rows, weight.transpose(-2, -1), offs=routing.sorted().ends)
    if is_traced():
        return _every_expert_linear(weight, rows, routing.sorted().ends)
    parts = rows.split(routing.sorted().sizes())
    return torch.cat([F.linear(part, weight[e]) for e, part in enumerate(parts)])


def _unaligned(weight: Tensor) -> bool:
    """Return whether grouped_mm rejects the weight: strides must be multiples of 16 bytes."""
    return any(size * weight.element_size() % 16 for size in weight.shape[1:])


def _chosen_linear(layer: Any, rows: Tensor, routing: Routing) -> Tensor:
    if parts := layer.parts():
        return _chosen_nf4_linear(parts, rows, routing)
    weight = layer.weight  # [E, out, in]
    if weight.device.type == "cpu" and not is_traced():
        # Use views: gathering the chosen weights would copy more bytes than the product reads.
        chosen = routing.chosen()
        return torch.cat([F.linear(rows[a : a + 1], weight[e]) for a, e in enumerate(chosen)])
    # Inductor fuses gather, product and sum into one loop, so the gathered weights never exist in memory.
    chosen_weight = weight[routing.experts.flatten()]  # [A, out, in]
    return (chosen_weight.float() * rows.float().unsqueeze(1)).sum(-1).to(rows.dtype)  # [A, out]


def _every_expert_linear(weight: Tensor | Parts, rows: Tensor, ends: Tensor) -> Tensor:
    """Compute `sorted_linear` without data-dependent sizes: E products over all rows, masked by expert."""
    # `len` would make a dynamic size of an export a constant.
    place = torch.arange(rows.shape[0], device=rows.device)  # [A]
    owner = torch.searchsorted(ends, place, right=True)  # [A]
    result = rows.new_zeros(rows.shape[0], weight.shape[1])  # [A, out]
    for e in range(weight.shape[0]):
        result = torch.where((owner == e).unsqueeze(1), F.linear(rows, expert_matrix(weight, e, rows.dtype)), result)
    return result


def _sorted_nf4_linear(parts: Parts, rows: Tensor, routing: Routing) -> Tensor:
    if parts.tiled and not _needs_gradient(rows):
        return nf4_cpu.sorted_linear(rows, routing.sorted().ends, parts)
    if is_traced():
        return _every_expert_linear(parts, rows, routing.sorted().ends)
    experts = enumerate(rows.split(routing.sorted().sizes()))
    return torch.cat([_NF4Linear.apply(part, parts.expert(e)) for e, part in experts])


def _chosen_nf4_linear(parts: Parts, rows: Tensor, routing: Routing) -> Tensor:
    experts = routing.experts.flatten()  # [A]
    if parts.tiled and not _needs_gradient(rows):
        return nf4_cpu.chosen_linear(rows, experts, parts)
    if parts.codes.device.type == "cpu":
        ids = enumerate(routing.chosen())
        return torch.cat([_NF4Linear.apply(rows[a : a + 1], parts.expert(e)) for a, e in ids])
    if USE_TRITON:
        from jetmoe.nf4 import triton as nf4_triton

        return nf4_triton.chosen_linear(rows, experts, parts)
    return gathered_nf4_linear(rows, experts, parts)


def gathered_nf4_linear(rows: Tensor, experts: Tensor, parts: Parts) -> Tensor:
    """Multiply each assignment by its expert; copies a few MiB of codes on the device to avoid a sync for the ids."""
    chosen = parts.map(lambda part: part[experts])
    return torch.cat([_nf4_linear(rows[a : a + 1], chosen.expert(a)) for a in range(len(rows))])


def _needs_gradient(rows: Tensor) -> bool:
    return rows.requires_grad and torch.is_grad_enabled()


def _nf4_linear(rows: Tensor, parts: Parts) -> Tensor:
    """Multiply rows by one 4-bit expert: `[n, in]` -> `[n, out]`."""
    ops = require_bitsandbytes()
    codes, shape = parts.codes.reshape(-1, 1), list(parts.shape[1:])
    if parts.nested_absmax is None or parts.nested_offset is None:
        return ops.gemm_4bit(rows, codes, shape, parts.absmax.flatten(), BLOCK, "nf4")
    return ops.gemm_4bit(
        rows,
        codes,
        shape,
        parts.nested_absmax.flatten(),
        BLOCK,
        "nf4",
        absmax_8bit=parts.absmax.flatten(),
        absmax_code=nested_code(rows.device),
        absmax_offset=parts.nested_offset.squeeze(0),
    )


class _NF4Linear(torch.autograd.Function):
    """`_nf4_linear` with a gradient for the rows but not for the weights."""

    @staticmethod
    def forward(ctx, rows: Tensor, parts: Parts) -> Tensor:
        ctx.parts = parts
        if not len(rows):
            return rows.new_empty(0, parts.shape[1])
        return _nf4_linear(rows, parts.untile())

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad @ ctx.parts.dequantize(grad.dtype)[0], None
