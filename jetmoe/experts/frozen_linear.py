"""Autograd for frozen experts: products that save neither weights nor gathered rows for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jetmoe import device
from jetmoe.autograd import require_first_order
from jetmoe.experts.assignments import SortedAssignments, sum_by_token
from jetmoe.linear import padded_size
from jetmoe.nf4.parts import Parts

Before = Callable[[Tensor, Tensor], Tensor]


class FrozenLinear(torch.autograd.Function):
    """Multiply sorted rows by E frozen maps and their LoRA factors, one expert at a time.

    With `top_k` above 1, the rows are tokens `[T, in]` and are gathered on use. Otherwise K copies of them would be
    saved for the backward pass. An expert's rows are followed by padding (`padded_spans`). The next expert overwrites
    the result of the padding. In sums over rows, the padding is zero.
    """

    @staticmethod
    def forward(
        ctx,
        rows: Tensor,
        A: Tensor | None,
        B: Tensor | None,
        scaling: float,
        weight: Tensor | Parts,
        assignments: SortedAssignments,
        top_k: int,
    ) -> Tensor:
        spans = padded_spans(assignments, rows)
        size = max((span.end for span in spans), default=0)
        result = rows.new_empty(max(size, len(rows) * top_k), weight.shape[1])  # [A and padding, out]
        inner = []  # [n, R] of each span
        matrices = expert_matrices(weight, rows, len(spans))
        for span in spans:
            part = _gathered(rows, assignments, span, top_k, zeros=False)  # [n, in]
            inner.append(_product_of_span(part, span, matrices, (A, B, scaling), result[span.start : span.end]))
        # Save the rows only for the gradient of A.
        ctx.save_for_backward(None if A is None else rows, A, B, *(one for one in inner if one is not None))
        ctx.scaling, ctx.weight = scaling, weight
        ctx.assignments, ctx.top_k, ctx.spans = assignments, top_k, spans
        return result[: len(rows) * top_k]

    @staticmethod
    def backward(ctx, grad: Tensor):
        require_first_order()
        rows, A, B, *inner = ctx.saved_tensors
        size = max((span.end for span in ctx.spans), default=0)
        grad_A, grad_B = (None, None) if A is None else (A.new_zeros(A.shape), B.new_zeros(B.shape))
        grad_rows = None
        if ctx.needs_input_grad[0]:
            grad_rows = grad.new_empty(max(size, len(grad)), ctx.weight.shape[2])  # [A and padding, in]
        matrices = expert_matrices(ctx.weight, grad, len(ctx.spans) if ctx.needs_input_grad[0] else 0)
        for i, span in enumerate(ctx.spans):
            part = _gathered(grad, ctx.assignments, span, 1)  # [n, out]
            if grad_rows is not None:
                place = grad_rows[span.start : span.end]  # [n, in]
                torch.mm(part, expert_matrix(matrices, span.expert, grad.dtype), out=place)
            if grad_A is not None and grad_B is not None:
                grad_inner = (part @ B[span.expert]).mul_(ctx.scaling)  # [n, R]
                if grad_rows is not None:
                    place.addmm_(grad_inner, A[span.expert])
                torch.mm(part.t(), inner[i], out=grad_B[span.expert])
                torch.mm(grad_inner.t(), _gathered(rows, ctx.assignments, span, ctx.top_k), out=grad_A[span.expert])
        if grad_rows is not None:
            grad_rows = grad_rows[: len(ctx.assignments.order)]
            if ctx.top_k > 1:
                grad_rows = sum_by_token(grad_rows, ctx.assignments, ctx.top_k)
        return grad_rows, grad_A, grad_B, None, None, None, None


class GatedLinear(torch.autograd.Function):
    """Apply `FrozenLinear` to `before(rows, gates)`, which is recomputed in the backward pass instead of saved."""

    @staticmethod
    def forward(
        ctx,
        rows: Tensor,
        gates: Tensor,
        A: Tensor | None,
        B: Tensor | None,
        scaling: float,
        weight: Tensor | Parts,
        assignments: SortedAssignments,
        before: Before,
    ) -> Tensor:
        spans = padded_spans(assignments, rows)
        size = max((span.end for span in spans), default=0)
        result = rows.new_empty(max(size, len(rows)), weight.shape[1])  # [A and padding, out]
        inner = []  # [n, R] of each span
        matrices = expert_matrices(weight, rows, len(spans))
        for span in spans:
            part = before(*(_gathered(one, assignments, span, 1, zeros=False) for one in (rows, gates)))  # [n, in]
            inner.append(_product_of_span(part, span, matrices, (A, B, scaling), result[span.start : span.end]))
        ctx.save_for_backward(rows, gates, A, B, *(one for one in inner if one is not None))
        ctx.scaling, ctx.weight = scaling, weight
        ctx.assignments, ctx.spans, ctx.before = assignments, spans, before
        return result[: len(rows)]

    @staticmethod
    def backward(ctx, grad: Tensor):
        require_first_order()
        rows, gates, A, B, *inner = ctx.saved_tensors
        grad_A, grad_B = (None, None) if A is None else (A.new_zeros(A.shape), B.new_zeros(B.shape))
        grad_rows, grad_gates = torch.empty_like(rows), torch.empty_like(gates)
        matrices = expert_matrices(ctx.weight, grad, len(ctx.spans))
        for i, span in enumerate(ctx.spans):
            part = _gathered(grad, ctx.assignments, span, 1)  # [n, out]
            sources = [_gathered(one, ctx.assignments, span, 1).detach().requires_grad_() for one in (rows, gates)]
            with torch.enable_grad():
                made = ctx.before(*sources)  # [n, in]
            grad_made = part @ expert_matrix(matrices, span.expert, grad.dtype)  # [n, in]
            if grad_A is not None and grad_B is not None:
                grad_inner = (part @ B[span.expert]).mul_(ctx.scaling)  # [n, R]
                grad_made.addmm_(grad_inner, A[span.expert])
                torch.mm(part.t(), inner[i], out=grad_B[span.expert])
                torch.mm(grad_inner.t(), made.detach(), out=grad_A[span.expert])
            own = slice(span.start, span.start + span.own)
            slopes = torch.autograd.grad(made, sources, grad_made)
            grad_rows[own], grad_gates[own] = (slope[: span.own] for slope in slopes)
        return grad_rows, grad_gates, grad_A, grad_B, None, None, None, None


def _product_of_span(
    part: Tensor,
    span: _Span,
    weight: Tensor | Parts,
    low_rank: tuple[Tensor | None, Tensor | None, float],
    place: Tensor,
) -> Tensor | None:
    """Write the product of an expert's rows `[n, in]`, including adapters, to `place` `[n, out]`.

    Returns:
        The rows times A and the scaling, `[n, R]`, zero in the padding; None without adapters.
    """
    A, B, scaling = low_rank
    torch.mm(part, expert_matrix(weight, span.expert, part.dtype).t(), out=place)
    if A is None or B is None:
        return None
    inner = (part @ A[span.expert].t()).mul_(scaling)  # [n, R]
    place.addmm_(inner, B[span.expert].t())
    if span.room:
        inner[span.own :].zero_()
    return inner


class _Span(NamedTuple):
    """An expert's sorted assignments and the padding after them."""

    expert: int
    start: int
    end: int
    own: int
    """Number of assignments without the padding."""

    @property
    def room(self) -> int:
        """Rows of padding."""
        return self.end - self.start - self.own


def padded_spans(assignments: SortedAssignments, rows: Tensor) -> list[_Span]:
    """Return a span for each expert with assignments. On a CPU in bf16, spans are padded (`padded_size`)."""
    spans, start = [], 0
    for e, count in enumerate(assignments.sizes()):
        if count:
            size = padded_size(count) if _compiles_shapes(rows) else count
            spans.append(_Span(e, start, start + size, count))
        start += count
    return spans


def _compiles_shapes(rows: Tensor) -> bool:
    return device.on_cpu(rows) and rows.dtype == torch.bfloat16


def expert_matrices(weight: Tensor | Parts, rows: Tensor, experts: int) -> Tensor | Parts:
    """Return the weight with all experts in 16 bits if that takes fewer operations: on a GPU, for several experts.

    Args:
        experts: number of experts whose matrices are needed.
    """
    if isinstance(weight, Parts) and experts > 1 and not device.on_cpu(rows):
        return weight.dequantize(rows.dtype)
    return weight


def expert_matrix(weight: Tensor | Parts, expert: int, dtype: torch.dtype) -> Tensor:
    """Return one expert's `[out, in]`."""
    return weight.expert(expert).dequantize(dtype)[0] if isinstance(weight, Parts) else weight[expert].to(dtype)


def _gathered(rows: Tensor, assignments: SortedAssignments, span: _Span, top_k: int, zeros: bool = True) -> Tensor:
    """Return the rows of the span's assignments; the padding is zero, or arbitrary rows if `zeros` is False."""
    own = slice(span.start, span.start + span.own)
    room = span.room
    if top_k == 1:
        if not room or (not zeros and span.end <= len(rows)):
            return rows[span.start : span.end]
        return F.pad(rows[own], (0, 0, 0, room))
    index = assignments.tokens(top_k)[own if zeros else slice(span.start, span.end)]
    missing = span.end - span.start - len(index)
    part = rows.index_select(0, F.pad(index, (0, missing)) if missing else index)
    if zeros and room:
        part[span.own :].zero_()
    return part
