"""Products of tokens with expert weights `[E, out, in]`, in 16 or 4 bits, with the LoRA adapters added.

A product gets one weight, its adapters and the routing. For a few tokens (decode), it runs in token order and reads
only the chosen experts' weights. For more tokens (prefill, training), rows are sorted by expert. Shape letters are
declared in `jetmoe/routing.py`; `A = T * K` assignments of tokens to experts.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from jetmoe import device
from jetmoe.autograd import is_traced, is_transformed, is_vmapped, require_first_order
from jetmoe.experts.assignments import Routing, dispatch
from jetmoe.experts.frozen_linear import Before, FrozenLinear, GatedLinear, expert_matrices, expert_matrix
from jetmoe.low_rank import LowRank
from jetmoe.nf4 import cpu as nf4_cpu
from jetmoe.nf4.parts import BLOCK, Parts, nested_code

NO_ADAPTER = (None, None, 1.0)
# Off until a table in tests/benchmarks/results shows it correct and faster on a GPU. JETMOE_TRITON=1 enables it.
USE_TRITON = os.environ.get("JETMOE_TRITON") == "1"

Weight = Tensor | Parts
Product = Callable[[Weight, LowRank | None, Tensor, Routing], Tensor]


def dispatched_product(weight: Weight, low_rank: LowRank | None, tokens: Tensor, routing: Routing) -> Tensor:
    """Multiply each token by its experts, sorted by expert: `[T, in]` -> `[A, out]`."""
    if routing.top_k > 1 and _expert_by_expert(weight, tokens, low_rank):  # with top_k 1, dispatch makes no copies
        return _frozen_linear(weight, low_rank, tokens, routing, routing.top_k)
    return sorted_product(weight, low_rank, dispatch(tokens, routing), routing)


def gated_product(
    weight: Weight, low_rank: LowRank | None, rows: Tensor, routing: Routing, gates: Tensor, before: Before
) -> Tensor:
    """Apply `before` to sorted assignments, then multiply them by their expert: `[A, *]` and `[A, 1]` -> `[A, out]`.

    The backward pass recomputes `before(rows, gates)` `[n, in]`, so that its result need not be saved.
    """
    if _expert_by_expert(weight, rows, low_rank):
        gates = gates.to(rows.dtype)
        return GatedLinear.apply(rows, gates, *(low_rank or NO_ADAPTER), weight, routing.sorted(), before)
    return sorted_product(weight, low_rank, before(rows, gates).to(rows.dtype), routing)


def sorted_product(weight: Weight, low_rank: LowRank | None, rows: Tensor, routing: Routing) -> Tensor:
    """Multiply each sorted assignment by its expert and add the adapters: `[A, in]` -> `[A, out]`."""
    if _expert_by_expert(weight, rows, low_rank):
        return _frozen_linear(weight, low_rank, rows, routing, 1)
    result = _sorted_linear(weight, rows, routing)
    if low_rank is None:
        return result
    if device.has_grouped_mm(rows):
        low_rank = low_rank.aligned()
    inner = _sorted_linear(low_rank.A, rows, routing)  # [A, R]
    return torch.add(result, _sorted_linear(low_rank.B, inner, routing), alpha=low_rank.scaling)


def chosen_product(weight: Weight, low_rank: LowRank | None, rows: Tensor, routing: Routing) -> Tensor:
    """Multiply each assignment by its expert and add the adapters, in token order: `[A, in]` -> `[A, out]`.

    Reads only the chosen weights.
    """
    result = _chosen_linear(weight, rows, routing)
    if low_rank is None:
        return result
    ids = routing.experts.flatten()  # [A]
    inner = _gathered_linear(low_rank.A[ids], rows) * low_rank.scaling  # [A, R]
    return result + _gathered_linear(low_rank.B[ids], inner).to(result.dtype)  # [A, out]


def _expert_by_expert(weight: Weight, rows: Tensor, low_rank: LowRank | None) -> bool:
    """Return whether to use `FrozenLinear`: not for trainable weights, nor if one call computes all experts."""
    if is_traced() or is_transformed() or device.has_grouped_mm(rows):
        return False
    if isinstance(weight, Parts):
        return torch.is_grad_enabled() and (rows.requires_grad or low_rank is not None)
    return not (torch.is_grad_enabled() and weight.requires_grad)


def _frozen_linear(weight: Weight, low_rank: LowRank | None, rows: Tensor, routing: Routing, top_k: int) -> Tensor:
    return FrozenLinear.apply(rows, *(low_rank or NO_ADAPTER), weight, routing.sorted(), top_k)


def _sorted_linear(weight: Weight, rows: Tensor, routing: Routing) -> Tensor:
    """Multiply each sorted row by its expert's `[out, in]`: `[A, in]` -> `[A, out]`."""
    if isinstance(weight, Parts):
        return _sorted_nf4_linear(weight, rows, routing)
    if device.has_grouped_mm(rows) and weight.dtype == rows.dtype and not _unaligned(weight, rows):
        return F.grouped_mm(rows, weight.transpose(-2, -1), offs=routing.sorted().ends)
    if is_traced() or is_vmapped(rows):
        return _every_expert_linear(weight, rows, routing.sorted().ends)
    parts = rows.split(routing.sorted().sizes())
    return torch.cat([F.linear(part, weight[e]) for e, part in enumerate(parts)])


def _unaligned(weight: Weight, rows: Tensor) -> bool:
    """Return whether grouped_mm rejects the weight: strides must be multiples of 16 bytes."""
    return any(size * rows.element_size() % 16 for size in weight.shape[1:])


def _chosen_linear(weight: Weight, rows: Tensor, routing: Routing) -> Tensor:
    if isinstance(weight, Parts):
        return _chosen_nf4_linear(weight, rows, routing)
    if device.on_cpu(rows) and not is_traced():
        # Use views: gathering the chosen weights would copy more bytes than the product reads.
        chosen = routing.chosen()
        return torch.cat([F.linear(rows[a : a + 1], weight[e]) for a, e in enumerate(chosen)])
    return _gathered_linear(weight[routing.experts.flatten()], rows).to(rows.dtype)  # [A, out]


def _gathered_linear(weight: Tensor, rows: Tensor) -> Tensor:
    """Multiply each row by its own weight: `[A, out, in]` and `[A, in]` -> `[A, out]`."""
    if device.on_cpu(rows) or is_traced():
        # Inductor fuses gather, product and sum into one loop, so the gathered weights never exist in memory.
        return (weight.float() * rows.float().unsqueeze(1)).sum(-1)
    return torch.bmm(weight, rows.unsqueeze(2)).squeeze(2)


def _every_expert_linear(weight: Weight, rows: Tensor, ends: Tensor) -> Tensor:
    """Compute `_sorted_linear` without data-dependent sizes: E products over all rows, masked by expert."""
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
    if device.has_grouped_mm(rows) and not _unaligned(parts, rows):
        return _GroupedNF4Linear.apply(rows, routing.sorted().ends, *parts)
    if is_traced():
        return _every_expert_linear(parts, rows, routing.sorted().ends)
    if not _needs_gradient(rows) and not isinstance(matrices := expert_matrices(parts, rows, len(rows)), Parts):
        return _sorted_linear(matrices, rows, routing)
    experts = enumerate(rows.split(routing.sorted().sizes()))
    return torch.cat([_NF4Linear.apply(part, parts.expert(e)) for e, part in experts])


def _chosen_nf4_linear(parts: Parts, rows: Tensor, routing: Routing) -> Tensor:
    experts = routing.experts.flatten()  # [A]
    if parts.tiled and not _needs_gradient(rows):
        return nf4_cpu.chosen_linear(rows, experts, parts)
    if device.on_cpu(rows):
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
    ops = torch.ops.bitsandbytes
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


class _GroupedNF4Linear(torch.autograd.Function):
    """Multiply sorted rows by all experts at once, `[A, in]` -> `[A, out]`.

    The weights are dequantized together, and again in the backward pass. One call for each expert would cost a GPU more
    time to launch than to compute.
    """

    @staticmethod
    def forward(ctx, rows: Tensor, ends: Tensor, *parts: Tensor | None) -> Tensor:
        ctx.save_for_backward(ends, *parts)
        weight = Parts(*parts).dequantize(rows.dtype)  # type: ignore[arg-type]
        return F.grouped_mm(rows, weight.transpose(1, 2), offs=ends)

    @staticmethod
    def backward(ctx, grad: Tensor):
        require_first_order()
        ends, *parts = ctx.saved_tensors
        weight = Parts(*parts).dequantize(grad.dtype)
        return F.grouped_mm(grad.contiguous(), weight, offs=ends), None, *(None for _ in parts)
