"""The expert layer `[E, out, in]`: the one place where tokens meet expert weights.

A router decides once per layer (`Routing`), and every expert product of that layer uses the same decision: either in
token order with only the chosen experts' weights touched (a few tokens: decode), or sorted by expert (prefill,
training). Shape letters are declared in `jetmoe/routing.py`; `A = T * K` are the assignments of tokens to experts.

Code for compiled steps asks `is_dynamo_compiling`, not `is_compiling`: the latter is one flag for all threads, and
plain steps run in one thread while another compiles.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Up to this many rows a compiled product is a loop of its own instead of a call into a matrix library.
FEW_ROWS = 4
# Up to this many assignments the chosen experts' weights are read row by row instead of sorting tokens by expert.
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
    """E linear maps without bias. Parameters: `weight` `[E, out, in]`."""

    def __init__(self, num_experts: int, input_size: int, output_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, output_size, input_size))

    def extra_repr(self) -> str:
        experts, output_size, input_size = self.weight.shape
        return f"experts={experts}, in={input_size}, out={output_size}"


def few_tokens(routing: Routing) -> bool:
    """Whether the products of this routing touch only the chosen experts' weights, in token order."""
    return routing.experts.numel() <= FEW_ASSIGNMENTS and not routing.logits.requires_grad


def dispatch(tokens: Tensor, routing: Routing) -> Tensor:
    """The input row of each sorted assignment: `[T, in]` -> `[A, in]`."""
    assignments = routing.sorted()
    if tokens.requires_grad and torch.is_grad_enabled():
        return _Dispatch.apply(tokens, assignments.order, assignments.inverse, routing.top_k)
    return tokens.index_select(0, assignments.order // routing.top_k)


def permute(rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """`rows[index]` for a permutation, `[A, *]` -> `[A, *]`; its gradient is a gather too, not an accumulation."""
    if rows.requires_grad and torch.is_grad_enabled():
        return _Permute.apply(rows, index, inverse)
    return rows.index_select(0, index)


def sorted_linear(experts: JetMoeExperts, rows: Tensor, routing: Routing) -> Tensor:
    """Each sorted assignment through its expert: `[A, in]` -> `[A, out]`."""
    weight = experts.weight  # [E, out, in]
    if weight.is_cuda and weight.dtype == rows.dtype == torch.bfloat16:
        return F.grouped_mm(rows, weight.transpose(-2, -1), offs=routing.sorted().ends)
    if torch.compiler.is_dynamo_compiling():
        return _every_expert_linear(weight, rows, routing.sorted().ends)
    parts = rows.split(routing.sorted().sizes())
    if torch.is_grad_enabled():
        return torch.cat([F.linear(part, weight[e]) for e, part in enumerate(parts)])
    result = rows.new_empty(len(rows), weight.shape[1])  # [A, out]
    for e, (part, place) in enumerate(zip(parts, result.split(routing.sorted().sizes()), strict=True)):
        torch.mm(part, weight[e].t(), out=place)
    return result


def chosen_linear(experts: JetMoeExperts, rows: Tensor, routing: Routing) -> Tensor:
    """Each assignment through its expert, in token order: `[A, in]` -> `[A, out]`; reads only the chosen weights."""
    weight = experts.weight  # [E, out, in]
    if weight.device.type == "cpu" and not torch.compiler.is_dynamo_compiling():
        # Views of the chosen weights: gathering them would copy more bytes than the product reads.
        chosen = routing.chosen()
        return torch.cat([F.linear(rows[a : a + 1], weight[e]) for a, e in enumerate(chosen)])
    # Inductor fuses gather, product and sum into one loop, so the gathered weights never exist in memory.
    chosen_weight = weight[routing.experts.flatten()]  # [A, out, in]
    return (chosen_weight.float() * rows.float().unsqueeze(1)).sum(-1).to(rows.dtype)  # [A, out]


def combine(rows: Tensor, gates: Tensor) -> Tensor:
    """The gate-weighted sum over a token's experts: `[A, out]` and `[T, K]` -> `[T, out]`."""
    rows = rows.view(*gates.shape, -1)  # [T, K, out]
    total = rows[:, 0] * gates[:, :1]  # [T, out]
    for k in range(1, gates.shape[1]):
        total = torch.addcmul(total, rows[:, k], gates[:, k : k + 1])
    return total


def project(linear: nn.Module, rows: Tensor) -> Tensor:
    """`linear(rows)` `[..., in]` -> `[..., out]`; compiled for a few rows, a loop that Inductor fuses with its
    neighbours. Adapted and quantized layers keep their own forward."""
    if type(linear) is nn.Linear and linear.bias is None:
        return product(linear.weight, rows)
    return linear(rows)


def product(weight: Tensor, rows: Tensor) -> Tensor:
    """`rows @ weight.T` for `[..., in]` rows and an `[out, in]` weight."""
    if torch.compiler.is_dynamo_compiling() and rows.shape[:-1].numel() <= FEW_ROWS:
        return (weight.float() * rows.float().unsqueeze(-2)).sum(-1).to(rows.dtype)
    # Flat: of a slice with more dimensions, matmul would make a batch and copy the weight for it.
    return F.linear(rows.reshape(-1, rows.shape[-1]), weight).view(*rows.shape[:-1], -1)


def _every_expert_linear(weight: Tensor, rows: Tensor, ends: Tensor) -> Tensor:
    """`sorted_linear` without a size that depends on data: E products over all rows, each kept where it belongs."""
    place = torch.arange(len(rows), device=rows.device)  # [A]
    owner = torch.searchsorted(ends, place, right=True)  # [A]
    result = rows.new_zeros(len(rows), weight.shape[1])  # [A, out]
    for e in range(weight.shape[0]):
        result = torch.where((owner == e).unsqueeze(1), F.linear(rows, weight[e]), result)
    return result


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tokens: Tensor, order: Tensor, inverse: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.top_k = top_k
        return tokens.index_select(0, order // top_k)  # [A, in]

    @staticmethod
    def backward(ctx, grad: Tensor):
        (inverse,) = ctx.saved_tensors
        per_token = grad.index_select(0, inverse).view(-1, ctx.top_k, grad.shape[-1])  # [T, K, in]
        return per_token.sum(1), None, None, None


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (inverse,) = ctx.saved_tensors
        return grad.index_select(0, inverse), None, None
