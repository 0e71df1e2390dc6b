"""The feed-forward half of a block: router, mixture of experts (MoE), and the norm that both halves use."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from transformers.activations import ACT2FN

from jetmoe.autograd import has_custom_backward, no_autocast, require_first_order
from jetmoe.config import JetMoeConfig
from jetmoe.experts.assignments import Routing, collect, combine, few_tokens, permute, repeat_tokens
from jetmoe.experts.experts import (
    JetMoeExperts,
    chosen_linear,
    dispatched_linear,
    gated_linear,
    product,
    split_linear,
)
from jetmoe.low_rank import is_plain_linear, why_not_split

# For the norms inside blocks, regardless of config.rms_norm_eps: the released models were trained with it.
BLOCK_NORM_EPS = 1e-6


class JetMoeMoE(nn.Module):
    """Mixture of E gated feed-forward experts."""

    def __init__(self, config: JetMoeConfig) -> None:
        super().__init__()
        self.activation = ACT2FN[config.activation_function]
        self.bias = nn.Parameter(torch.empty(config.hidden_size))
        self.input_linear = JetMoeExperts(config.num_local_experts, config.hidden_size, 2 * config.intermediate_size)
        self.output_linear = JetMoeExperts(config.num_local_experts, config.intermediate_size, config.hidden_size)
        self.router = JetMoeRouter(config)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Routing]:
        """Return the output, `[B, S, D]` -> `[B, S, D]`, and the routing of the B * S tokens."""
        tokens = hidden.flatten(0, 1)  # [T, D]
        routing = Routing(*self.router(tokens))
        if few_tokens(routing):
            rows = self._gated(chosen_linear(self.input_linear, repeat_tokens(tokens, routing), routing))
            result = combine(chosen_linear(self.output_linear, rows, routing), routing.gates)  # [T, D]
        else:
            rows = dispatched_linear(self.input_linear, tokens, routing)  # [A, 2 * I]
            gates = permute(routing.gates.flatten().unsqueeze(1), routing.sorted().order, routing.sorted().inverse)
            rows = gated_linear(self.output_linear, rows, gates, routing, before=self._weighed)  # [A, D]
            result = collect(rows, routing)  # [T, D]
        return (result + self.bias).view_as(hidden), routing

    def _weighed(self, rows: Tensor, gates: Tensor) -> Tensor:
        """Apply the gates here, so that the last product need not be saved: `[A, 2 * I]`, `[A, 1]` -> `[A, I]`."""
        return self._gated(rows) * gates

    def _gated(self, rows: Tensor) -> Tensor:
        """Apply the gated activation: `[A, 2 * I]` -> `[A, I]`."""
        gate, up = rows.chunk(2, dim=-1)
        return self.activation(gate) * up


class RouterOutput(NamedTuple):
    # A tuple, because backward hooks only see the tensors of tuples.
    logits: Tensor  # [T, E] fp32
    experts: Tensor  # [T, K] int64, strongest first
    gates: Tensor  # [T, K], in the dtype of the tokens


class JetMoeRouter(nn.Module):
    """Select K of E experts. The gates are a softmax over the selected logits only."""

    def __init__(self, config: JetMoeConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.layer = nn.Linear(config.hidden_size, config.num_local_experts, bias=False)

    def forward(self, tokens: Tensor) -> RouterOutput:
        with no_autocast(tokens):
            logits = self._logits(tokens.to(torch.promote_types(tokens.dtype, torch.float32)))  # [T, E]
        picked, experts = logits.topk(self.top_k, dim=-1)  # [T, K]
        return RouterOutput(logits, experts, picked.softmax(dim=-1).to(tokens.dtype))

    def _logits(self, tokens: Tensor) -> Tensor:
        # Always in fp32: bf16 logits would break the ties between the slots of an upcycled model.
        if is_plain_linear(self.layer):
            return product(self.layer.weight.to(tokens.dtype), tokens)
        if torch.compiler.is_dynamo_compiling() and not why_not_split(self.layer):
            return split_linear(self.layer, tokens)
        narrow = {name: one.float() for name, one in self.layer.named_parameters() if one.dtype.itemsize < 4}
        return functional_call(self.layer, narrow, (tokens,)) if narrow else self.layer(tokens)


class JetMoeRMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        if has_custom_backward(hidden) and not torch.compiler.is_dynamo_compiling():
            return _RMSNorm.apply(hidden, self.weight, self.eps)
        return F.rms_norm(hidden, self.weight.shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


class _RMSNorm(torch.autograd.Function):
    """`F.rms_norm` that saves only its input for the backward pass, instead of two copies in fp32."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.eps = eps
        return F.rms_norm(hidden, weight.shape, weight, eps)

    @staticmethod
    def backward(ctx, grad: Tensor):
        require_first_order()
        hidden, weight = ctx.saved_tensors
        wide = hidden.float()
        inverse = (wide.square().mean(-1, keepdim=True) + ctx.eps).rsqrt()  # [..., 1]
        normed = wide.mul_(inverse) if wide is not hidden else wide * inverse  # [..., D]
        slopes = grad * weight.float()
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * normed).flatten(0, -2).sum(0).to(weight.dtype)  # [D]
        inward = (slopes * normed).mean(-1, keepdim=True)
        return ((slopes - normed * inward) * inverse).to(hidden.dtype), grad_weight, None
