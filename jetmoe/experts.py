"""The expert layer `[E, out, in]`: the one place where tokens meet expert weights.

A router decides once per layer (`Routing`), and every expert product of that layer uses the same decision: either in
token order with only the chosen experts' weights touched (a few tokens: decode), or sorted by expert (prefill,
training). What LoRA adapters add (`low_rank.py`) is computed beside the product. Shape letters are declared in
`jetmoe/routing.py`; `A = T * K` are the assignments of tokens to experts.

Code for compiled steps asks `is_dynamo_compiling`, not `is_compiling`: the latter is one flag for all threads, and
plain steps run in one thread while another compiles.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jetmoe.low_rank import LowRank, split_adapters
from jetmoe.nf4 import cpu as nf4_cpu
from jetmoe.nf4.parts import BLOCK, SUFFIXES, Parts, nested_code, require_bitsandbytes
from jetmoe.nf4.tensor import NF4Tensor, stored_bytes

Before = Callable[[Tensor, Tensor], Tensor]
# Up to this many rows a compiled product is a loop of its own instead of a call into a matrix library.
FEW_ROWS = 4
# Up to this many assignments the chosen experts' weights are read row by row instead of sorting tokens by expert.
FEW_ASSIGNMENTS = 16
# Off until a table in tests/benchmarks/results shows it right and faster on a card: JETMOE_TRITON=1 turns it on.
USE_TRITON = os.environ.get("JETMOE_TRITON") == "1"


@dataclass
class Routing:
    """One router's decision for T tokens."""

    logits: Tensor  # [T, E] fp32
    experts: Tensor  # [T, K] int64, strongest first
    gates: Tensor  # [T, K], in the model's dtype
    _chosen: list[int] | None = field(default=None, repr=False)
    _sorted: SortedAssignments | None = field(default=None, repr=False)

    @property
    def top_k(self) -> int:
        return self.experts.shape[1]

    def chosen(self) -> list[int]:
        """The expert of each assignment, on the host. Only for the CPU, where reading it costs nothing."""
        if self._chosen is None:
            self._chosen = self.experts.flatten().tolist()
        return self._chosen

    def sorted(self) -> SortedAssignments:
        """The assignments sorted by expert; computed once and reused by every product of the layer."""
        if self._sorted is None:
            self._sorted = SortedAssignments.of(self)
        return self._sorted


@dataclass
class SortedAssignments:
    order: Tensor  # [A] assignment at each sorted place
    inverse: Tensor  # [A] sorted place of each assignment
    ends: Tensor  # [E] int32, the place after the last assignment of each expert
    _sizes: list[int] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, routing: Routing) -> SortedAssignments:
        experts = routing.experts.flatten()  # [A]
        order = experts.argsort(stable=True)  # [A]
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))  # [A]
        ids = torch.arange(routing.logits.shape[-1], device=order.device)  # [E]
        ends = torch.searchsorted(experts[order], ids, right=True, out_int32=True)  # [E]
        return cls(order, inverse, ends)

    def sizes(self) -> list[int]:
        """Assignments of each expert, on the host (a device sync on accelerators)."""
        if self._sizes is None:
            ends = self.ends.tolist()
            self._sizes = [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        return self._sizes


class JetMoeExperts(nn.Module):
    """E linear maps without bias. Parameters: `weight` `[E, out, in]`, an `NF4Tensor` where it is in 4 bits."""

    def __init__(self, num_experts: int, input_size: int, output_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, output_size, input_size))
        self._parts: Parts | None = None

    def parts(self) -> Parts | None:
        """The 4-bit weight as plain tensors; None where it is not in 4 bits."""
        # A compiled graph must not see the parameter. The plain forward before it has left its parts here.
        if not torch.compiler.is_dynamo_compiling():
            self._parts = self.weight.parts if isinstance(self.weight, NF4Tensor) else None
        return self._parts

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


def few_tokens(routing: Routing) -> bool:
    """Whether the products of this routing touch only the chosen experts' weights, in token order."""
    return routing.experts.numel() <= FEW_ASSIGNMENTS and not routing.logits.requires_grad


def dispatch(tokens: Tensor, routing: Routing) -> Tensor:
    """The input row of each sorted assignment: `[T, in]` -> `[A, in]`."""
    assignments = routing.sorted()
    if tokens.requires_grad and torch.is_grad_enabled():
        return _Dispatch.apply(tokens, assignments, routing.top_k)
    return tokens.index_select(0, assignments.order // routing.top_k)


def permute(rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """`rows[index]` for a permutation, `[A, *]` -> `[A, *]`; its gradient is a gather too, not an accumulation."""
    if rows.requires_grad and torch.is_grad_enabled():
        return _Permute.apply(rows, index, inverse)
    return rows.index_select(0, index)


def dispatched_linear(experts: nn.Module, tokens: Tensor, routing: Routing) -> Tensor:
    """Each token through its experts, sorted by expert: `[T, in]` -> `[A, out]`."""
    layer, low_rank = split_adapters(experts, tokens.dtype)
    if routing.top_k > 1 and _expert_by_expert(layer, tokens, low_rank):  # for one expert a token nothing is copied
        return _frozen_linear(layer, low_rank, tokens, routing, routing.top_k)
    return sorted_linear(experts, dispatch(tokens, routing), routing)


def gated_linear(experts: nn.Module, rows: Tensor, gates: Tensor, routing: Routing, before: Before) -> Tensor:
    """Sorted assignments through `before` and then their expert: `[A, *]` and `[A, 1]` -> `[A, out]`.

    `before(rows, gates)` `[n, in]` is computed again for the gradient, so that its result need not be kept.
    """
    layer, low_rank = split_adapters(experts, rows.dtype)
    if _expert_by_expert(layer, rows, low_rank):
        A, B = low_rank or (None, None)
        weight = layer.parts() or layer.weight
        return GatedLinear.apply(rows, gates, A, B, weight, routing.sorted(), before)
    return sorted_linear(experts, before(rows, gates), routing)


def sorted_linear(experts: nn.Module, rows: Tensor, routing: Routing) -> Tensor:
    """Each sorted assignment through its expert, with what adapters add: `[A, in]` -> `[A, out]`."""
    layer, low_rank = split_adapters(experts, rows.dtype)
    if _expert_by_expert(layer, rows, low_rank):
        return _frozen_linear(layer, low_rank, rows, routing, 1)
    result = _sorted_product(layer.parts() or layer.weight, rows, routing)
    if low_rank is None:
        return result
    return result + _sorted_product(low_rank.B, _sorted_product(low_rank.A, rows, routing), routing)


def chosen_linear(experts: nn.Module, rows: Tensor, routing: Routing) -> Tensor:
    """Each assignment through its expert, with what adapters add, in token order: `[A, in]` -> `[A, out]`; reads only
    the chosen weights."""
    layer, low_rank = split_adapters(experts, rows.dtype)
    result = _chosen_product(layer, rows, routing)
    if low_rank is None:
        return result
    ids = routing.experts.flatten()  # [A]
    inner = (low_rank.A[ids].float() * rows.float().unsqueeze(1)).sum(-1)  # [A, R]
    return result + (low_rank.B[ids].float() * inner.unsqueeze(1)).sum(-1).to(result.dtype)  # [A, out]


def combine(rows: Tensor, gates: Tensor) -> Tensor:
    """The gate-weighted sum over a token's experts: `[A, out]` and `[T, K]` -> `[T, out]`."""
    rows = rows.view(*gates.shape, -1)  # [T, K, out]
    total = rows[:, 0] * gates[:, :1]  # [T, out]
    for k in range(1, gates.shape[1]):
        total = torch.addcmul(total, rows[:, k], gates[:, k : k + 1])
    return total


def collect(rows: Tensor, routing: Routing) -> Tensor:
    """The sum over a token's experts of sorted rows, which its gates have weighed already: `[A, out]` -> `[T, out]`."""
    if rows.requires_grad and torch.is_grad_enabled():
        return _Collect.apply(rows, routing.sorted(), routing.top_k)
    return sum_by_token(rows, routing.sorted(), routing.top_k)


def project(linear: nn.Module, rows: Tensor) -> Tensor:
    """`linear(rows)` with what adapters add, `[..., in]` -> `[..., out]`; compiled for a few rows, a loop that Inductor
    fuses with its neighbours."""
    layer, low_rank = split_adapters(linear, rows.dtype)
    result = _project(layer, rows)
    return result if low_rank is None else result + product(low_rank.B[0], product(low_rank.A[0], rows))


def _project(linear: nn.Module, rows: Tensor) -> Tensor:
    if type(linear) is nn.Linear and linear.bias is None:
        return product(linear.weight, rows)
    tiles = getattr(linear, "tiles", None)
    if tiles is None or rows.device.type != "cpu" or _needs_gradient(rows):
        return linear(rows)
    flat = rows.reshape(-1, rows.shape[-1])
    if len(flat) <= FEW_ROWS:
        result = nf4_cpu.chosen_linear(flat, torch.zeros(len(flat), dtype=torch.int64), tiles)
    else:
        result = nf4_cpu.sorted_linear(flat, torch.tensor([len(flat)]), tiles)
    return result.view(*rows.shape[:-1], -1)


def product(weight: Tensor, rows: Tensor) -> Tensor:
    """`rows @ weight.T` for `[..., in]` rows and an `[out, in]` weight."""
    if torch.compiler.is_dynamo_compiling() and rows.shape[:-1].numel() <= FEW_ROWS:
        return (weight.float() * rows.float().unsqueeze(-2)).sum(-1).to(rows.dtype)
    # Flat: of a slice with more dimensions, matmul would make a batch and copy the weight for it.
    return F.linear(rows.reshape(-1, rows.shape[-1]), weight).view(*rows.shape[:-1], -1)


def _expert_by_expert(layer: Any, rows: Tensor, low_rank: LowRank | None) -> bool:
    """Whether `FrozenLinear` is the way: not for weights that learn, nor where one call does all experts."""
    if torch.compiler.is_dynamo_compiling() or (torch.is_grad_enabled() and layer.weight.requires_grad):
        return False
    if isinstance(layer.weight, NF4Tensor):
        return torch.is_grad_enabled() and (rows.requires_grad or low_rank is not None)
    return not (rows.is_cuda and rows.dtype == torch.bfloat16)


def _frozen_linear(layer: Any, low_rank: LowRank | None, rows: Tensor, routing: Routing, top_k: int) -> Tensor:
    A, B = low_rank or (None, None)
    return FrozenLinear.apply(rows, A, B, layer.parts() or layer.weight, routing.sorted(), top_k)


def _sorted_product(weight: Tensor | Parts, rows: Tensor, routing: Routing) -> Tensor:
    """Each sorted row through its expert's `[out, in]`: `[A, in]` -> `[A, out]`."""
    if isinstance(weight, Parts):
        return _sorted_nf4_linear(weight, rows, routing)
    if weight.is_cuda and weight.dtype == rows.dtype == torch.bfloat16 and not _unaligned(weight):
        return F.grouped_mm(rows, weight.transpose(-2, -1), offs=routing.sorted().ends)
    if torch.compiler.is_dynamo_compiling():
        return _every_expert_linear(weight, rows, routing.sorted().ends)
    parts = rows.split(routing.sorted().sizes())
    return torch.cat([F.linear(part, weight[e]) for e, part in enumerate(parts)])


def _unaligned(weight: Tensor) -> bool:
    """Whether grouped_mm refuses it: strides must be multiples of 16 bytes."""
    return any(size * weight.element_size() % 16 for size in weight.shape[1:])


def _chosen_product(layer: Any, rows: Tensor, routing: Routing) -> Tensor:
    if parts := layer.parts():
        return _chosen_nf4_linear(parts, rows, routing)
    weight = layer.weight  # [E, out, in]
    if weight.device.type == "cpu" and not torch.compiler.is_dynamo_compiling():
        # Views of the chosen weights: gathering them would copy more bytes than the product reads.
        chosen = routing.chosen()
        return torch.cat([F.linear(rows[a : a + 1], weight[e]) for a, e in enumerate(chosen)])
    # Inductor fuses gather, product and sum into one loop, so the gathered weights never exist in memory.
    chosen_weight = weight[routing.experts.flatten()]  # [A, out, in]
    return (chosen_weight.float() * rows.float().unsqueeze(1)).sum(-1).to(rows.dtype)  # [A, out]


def _every_expert_linear(weight: Tensor, rows: Tensor, ends: Tensor) -> Tensor:
    """`sorted_linear` without a size that depends on data: E products over all rows, each kept where it belongs."""
    place = torch.arange(len(rows), device=rows.device)  # [A]
    owner = torch.searchsorted(ends, place, right=True)  # [A]
    result = rows.new_zeros(len(rows), weight.shape[1])  # [A, out]
    for e in range(weight.shape[0]):
        result = torch.where((owner == e).unsqueeze(1), F.linear(rows, weight[e]), result)
    return result


def _sorted_nf4_linear(parts: Parts, rows: Tensor, routing: Routing) -> Tensor:
    if parts.tiled and not _needs_gradient(rows):
        return nf4_cpu.sorted_linear(rows, routing.sorted().ends, parts)
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
    """Each assignment through its expert: copies a few MiB of codes on the device instead of asking which they are."""
    chosen = parts.map(lambda part: part[experts])
    return torch.cat([_nf4_linear(rows[a : a + 1], chosen.expert(a)) for a in range(len(rows))])


def _needs_gradient(rows: Tensor) -> bool:
    return rows.requires_grad and torch.is_grad_enabled()


def _nf4_linear(rows: Tensor, parts: Parts) -> Tensor:
    """Rows `[n, in]` through one 4-bit expert -> `[n, out]`."""
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
    """`_nf4_linear` with a gradient for the rows; the weights have none."""

    @staticmethod
    def forward(ctx, rows: Tensor, parts: Parts) -> Tensor:
        ctx.parts = parts
        if not len(rows):
            return rows.new_empty(0, parts.shape[1])
        return _nf4_linear(rows, parts.untile())

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad @ ctx.parts.dequantize(grad.dtype)[0], None


class FrozenLinear(torch.autograd.Function):
    """Sorted rows through E frozen maps and the factors beside them, one expert at a time.

    With `top_k` above 1 the rows are tokens `[T, in]`, gathered where they are needed: K copies of them would be kept
    for the backward pass otherwise. An expert's rows are taken with room behind them (`padded_spans`). What comes out of the
    room is overwritten by the next expert; where sums are made, the room holds zeros.
    """

    @staticmethod
    def forward(
        ctx,
        rows: Tensor,
        A: Tensor | None,
        B: Tensor | None,
        weight: Tensor | Parts,
        assignments: SortedAssignments,
        top_k: int,
    ) -> Tensor:
        spans = padded_spans(assignments, rows)
        size = max((span.end for span in spans), default=0)
        result = rows.new_empty(max(size, len(rows) * top_k), weight.shape[1])  # [A and room, out]
        inner = []  # [n, R] of each span
        for span in spans:
            part = _gathered(rows, assignments, span, top_k, zeros=False)  # [n, in]
            inner.append(_product_of_span(part, span, weight, A, B, result[span.start : span.end]))
        # Rows are only needed for the gradient of A.
        ctx.save_for_backward(None if A is None else rows, A, B, *(one for one in inner if one is not None))
        ctx.weight, ctx.assignments, ctx.top_k, ctx.spans = weight, assignments, top_k, spans
        return result[: len(rows) * top_k]

    @staticmethod
    def backward(ctx, grad: Tensor):
        rows, A, B, *inner = ctx.saved_tensors
        size = max((span.end for span in ctx.spans), default=0)
        grad_A, grad_B = (None, None) if A is None else (torch.zeros_like(A), torch.zeros_like(B))
        grad_rows = None
        if ctx.needs_input_grad[0]:
            grad_rows = grad.new_empty(max(size, len(grad)), ctx.weight.shape[2])  # [A and room, in]
        for i, span in enumerate(ctx.spans):
            part = _gathered(grad, ctx.assignments, span, 1)  # [n, out]
            if grad_rows is not None:
                place = grad_rows[span.start : span.end]  # [n, in]
                torch.mm(part, _matrix(ctx.weight, span.expert, grad.dtype), out=place)
            if grad_A is not None and grad_B is not None:
                grad_inner = part @ B[span.expert]  # [n, R]
                if grad_rows is not None:
                    place.addmm_(grad_inner, A[span.expert])
                torch.mm(part.t(), inner[i], out=grad_B[span.expert])
                torch.mm(grad_inner.t(), _gathered(rows, ctx.assignments, span, ctx.top_k), out=grad_A[span.expert])
        if grad_rows is not None:
            grad_rows = grad_rows[: len(ctx.assignments.order)]
            if ctx.top_k > 1:
                grad_rows = sum_by_token(grad_rows, ctx.assignments, ctx.top_k)
        return grad_rows, grad_A, grad_B, None, None, None


class GatedLinear(torch.autograd.Function):
    """`FrozenLinear` of what `before` makes of the rows, of which the rows alone are kept."""

    @staticmethod
    def forward(
        ctx,
        rows: Tensor,
        gates: Tensor,
        A: Tensor | None,
        B: Tensor | None,
        weight: Tensor | Parts,
        assignments: SortedAssignments,
        before: Before,
    ) -> Tensor:
        spans = padded_spans(assignments, rows)
        size = max((span.end for span in spans), default=0)
        result = rows.new_empty(max(size, len(rows)), weight.shape[1])  # [A and room, out]
        inner = []  # [n, R] of each span
        for span in spans:
            part = before(*(_gathered(one, assignments, span, 1, zeros=False) for one in (rows, gates)))  # [n, in]
            inner.append(_product_of_span(part, span, weight, A, B, result[span.start : span.end]))
        ctx.save_for_backward(rows, gates, A, B, *(one for one in inner if one is not None))
        ctx.weight, ctx.assignments, ctx.spans, ctx.before = weight, assignments, spans, before
        return result[: len(rows)]

    @staticmethod
    def backward(ctx, grad: Tensor):
        rows, gates, A, B, *inner = ctx.saved_tensors
        grad_A, grad_B = (None, None) if A is None else (torch.zeros_like(A), torch.zeros_like(B))
        grad_rows, grad_gates = torch.empty_like(rows), torch.empty_like(gates)
        for i, span in enumerate(ctx.spans):
            part = _gathered(grad, ctx.assignments, span, 1)  # [n, out]
            sources = [_gathered(one, ctx.assignments, span, 1).detach().requires_grad_() for one in (rows, gates)]
            with torch.enable_grad():
                made = ctx.before(*sources)  # [n, in]
            grad_made = part @ _matrix(ctx.weight, span.expert, grad.dtype)  # [n, in]
            if grad_A is not None and grad_B is not None:
                grad_inner = part @ B[span.expert]  # [n, R]
                grad_made.addmm_(grad_inner, A[span.expert])
                torch.mm(part.t(), inner[i], out=grad_B[span.expert])
                torch.mm(grad_inner.t(), made.detach(), out=grad_A[span.expert])
            own = slice(span.start, span.start + span.own)
            slopes = torch.autograd.grad(made, sources, grad_made)
            grad_rows[own], grad_gates[own] = (slope[: span.own] for slope in slopes)
        return grad_rows, grad_gates, grad_A, grad_B, None, None, None


def _product_of_span(
    part: Tensor, span: _Span, weight: Tensor | Parts, A: Tensor | None, B: Tensor | None, place: Tensor
) -> Tensor | None:
    """An expert's rows `[n, in]` through its map, with what adapters add, into `place` `[n, out]`; `[n, R]` of the
    factors, zero beyond the expert's own."""
    torch.mm(part, _matrix(weight, span.expert, part.dtype).t(), out=place)
    if A is None or B is None:
        return None
    inner = part @ A[span.expert].t()  # [n, R]
    place.addmm_(inner, B[span.expert].t())
    inner[span.own :].zero_()
    return inner


class _Span(NamedTuple):
    """An expert's sorted assignments and the room behind them."""

    expert: int
    start: int
    end: int
    own: int
    """How many of them are the expert's."""


def padded_spans(assignments: SortedAssignments, rows: Tensor) -> list[_Span]:
    """The experts that have assignments; on a CPU in bf16 with room, so that few different sizes occur.

    oneDNN compiles a kernel for each shape (a quarter of a millisecond, more than a small product takes), and every
    expert of every layer has another number of rows. Room makes 8 sizes for each power of two.
    """
    spans, start = [], 0
    for e, count in enumerate(assignments.sizes()):
        if count:
            step = max(16, 2 ** (count.bit_length() - 4)) if _compiles_shapes(rows) else 1
            spans.append(_Span(e, start, start - count // -step * step, count))
        start += count
    return spans


def _compiles_shapes(rows: Tensor) -> bool:
    return rows.device.type == "cpu" and rows.dtype == torch.bfloat16


def _matrix(weight: Tensor | Parts, expert: int, dtype: torch.dtype) -> Tensor:
    """One expert's `[out, in]`."""
    return weight.expert(expert).dequantize(dtype)[0] if isinstance(weight, Parts) else weight[expert]


def _gathered(rows: Tensor, assignments: SortedAssignments, span: _Span, top_k: int, zeros: bool = True) -> Tensor:
    """The rows of the span's assignments, and in its room zeros, or whatever follows where `zeros` need not be."""
    own = slice(span.start, span.start + span.own)
    room = span.end - own.stop
    if top_k == 1:
        if not room or (not zeros and span.end <= len(rows)):
            return rows[span.start : span.end]
        return F.pad(rows[own], (0, 0, 0, room))
    index = assignments.order[own if zeros else slice(span.start, span.end)] // top_k
    part = rows.index_select(0, F.pad(index, (0, span.end - span.start - len(index))))
    if zeros:
        part[span.own :].zero_()
    return part


def sum_by_token(rows: Tensor, assignments: SortedAssignments, top_k: int) -> Tensor:
    """The sum of each token's sorted assignments: `[A, *]` -> `[T, *]`."""
    in_order = rows.index_select(0, assignments.inverse).view(-1, top_k, rows.shape[-1])  # [T, K, *]
    total = in_order[:, 0]
    for k in range(1, top_k):  # a sum over K would take three times as long
        total = total + in_order[:, k]
    return total


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tokens: Tensor, assignments: SortedAssignments, top_k: int) -> Tensor:
        ctx.assignments, ctx.top_k = assignments, top_k
        return tokens.index_select(0, assignments.order // top_k)  # [A, in]

    @staticmethod
    def backward(ctx, grad: Tensor):
        return sum_by_token(grad, ctx.assignments, ctx.top_k), None, None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, assignments: SortedAssignments, top_k: int) -> Tensor:
        ctx.assignments, ctx.top_k = assignments, top_k
        return sum_by_token(rows, assignments, top_k)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad.index_select(0, ctx.assignments.order // ctx.top_k), None, None


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (inverse,) = ctx.saved_tensors
        return grad.index_select(0, inverse), None, None
