"""Autograd for frozen experts: products that save neither weights nor gathered rows for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jetmoe.experts.assignments import SortedAssignments, sum_by_token
from jetmoe.nf4.parts import Parts

Before = Callable[[Tensor, Tensor], Tensor]


class FrozenLinear(torch.autograd.Function):
    """Sorted rows through E frozen maps and the factors beside them, one expert at a time.

    With `top_k` above 1 the rows are tokens `[T, in]`, gathered where they are needed: K copies of them would be kept
    for the backward pass otherwise. An expert's rows are taken with padding behind them (`padded_spans`). The result of
    the padding is overwritten by the next expert; where sums are made, the padding holds zeros.
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
