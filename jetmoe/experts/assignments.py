"""Assignments of tokens to experts, and the permutations of rows that they require."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from jetmoe.autograd import has_custom_backward, is_exporting

# Up to this many assignments, products run row by row in token order; above it, tokens are sorted by expert.
FEW_ASSIGNMENTS = 16


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
        """Return the expert of each assignment, on the host. For CPU tensors only, which need no sync."""
        if self._chosen is None:
            self._chosen = self.experts.flatten().tolist()
        return self._chosen

    def sorted(self) -> SortedAssignments:
        """Return the assignments sorted by expert, computed once and reused by every product of the layer."""
        if self._sorted is None:
            self._sorted = SortedAssignments.of(self)
        return self._sorted


@dataclass
class SortedAssignments:
    order: Tensor  # [A] assignment at each sorted place
    inverse: Tensor  # [A] sorted place of each assignment
    ends: Tensor  # [E] int32, the place after the last assignment of each expert
    _sizes: list[int] | None = field(default=None, repr=False)
    _tokens: Tensor | None = field(default=None, repr=False)

    @classmethod
    def of(cls, routing: Routing) -> SortedAssignments:
        experts = routing.experts.flatten()  # [A]
        ordered, order = experts.sort(stable=True)  # [A]
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=order.device))  # [A]
        ids = torch.arange(routing.logits.shape[-1], device=order.device)  # [E]
        ends = torch.searchsorted(ordered, ids, right=True, out_int32=True)  # [E]
        return cls(order, inverse, ends)

    def tokens(self, top_k: int) -> Tensor:
        """Return the token of each sorted assignment, `[A]`."""
        if self._tokens is None:
            self._tokens = self.order // top_k
        return self._tokens

    def sizes(self) -> list[int]:
        """Return the number of assignments per expert, on the host (a device sync on accelerators)."""
        if self._sizes is None:
            ends = self.ends.tolist()
            self._sizes = [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        return self._sizes


def few_tokens(routing: Routing) -> bool:
    """Return whether products read only the chosen experts' weights, in token order."""
    if is_exporting():
        return False
    return routing.experts.numel() <= FEW_ASSIGNMENTS and not routing.logits.requires_grad


def dispatch(tokens: Tensor, routing: Routing) -> Tensor:
    """Gather the input row of each sorted assignment: `[T, in]` -> `[A, in]`."""
    assignments = routing.sorted()
    if has_custom_backward(tokens):
        return _Dispatch.apply(tokens, assignments, routing.top_k)
    return tokens.index_select(0, assignments.tokens(routing.top_k))


def repeat_tokens(tokens: Tensor, routing: Routing) -> Tensor:
    """Repeat each token's row for its assignments, in token order: `[T, D]` -> `[A, D]`."""
    return tokens.unsqueeze(1).expand(-1, routing.top_k, -1).reshape(-1, tokens.shape[-1])


def permute(rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """Return `rows[index]` for a permutation, `[A, *]` -> `[A, *]`. The gradient is a gather, not an accumulation."""
    if has_custom_backward(rows):
        return _Permute.apply(rows, index, inverse)
    return rows.index_select(0, index)


def combine(rows: Tensor, gates: Tensor) -> Tensor:
    """Sum each token's experts, weighted by its gates: `[A, out]` and `[T, K]` -> `[T, out]`."""
    rows = rows.view(*gates.shape, -1)  # [T, K, out]
    total = rows[:, 0] * gates[:, :1]  # [T, out]
    for k in range(1, gates.shape[1]):
        total = torch.addcmul(total, rows[:, k], gates[:, k : k + 1])
    return total


def collect(rows: Tensor, routing: Routing) -> Tensor:
    """Sum sorted rows, already weighted by the gates, over each token's experts: `[A, out]` -> `[T, out]`."""
    if has_custom_backward(rows):
        return _Collect.apply(rows, routing.sorted(), routing.top_k)
    return sum_by_token(rows, routing.sorted(), routing.top_k)


def sum_by_token(rows: Tensor, assignments: SortedAssignments, top_k: int) -> Tensor:
    """Sum the sorted assignments of each token: `[A, *]` -> `[T, *]`."""
    in_order = rows.index_select(0, assignments.inverse).view(-1, top_k, rows.shape[-1])  # [T, K, *]
    total = in_order[:, 0]
    for k in range(1, top_k):  # `sum(1)` takes three times as long
        total = total + in_order[:, k]
    return total


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tokens: Tensor, assignments: SortedAssignments, top_k: int) -> Tensor:
        ctx.assignments, ctx.top_k = assignments, top_k
        return tokens.index_select(0, assignments.tokens(top_k))  # [A, in]

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
        return grad.index_select(0, ctx.assignments.tokens(ctx.top_k)), None, None


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (inverse,) = ctx.saved_tensors
        return grad.index_select(0, inverse), None, None
