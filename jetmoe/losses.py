"""Router losses, and a next-token loss that never holds all logits in memory.

The router losses are computed per layer and router kind and then averaged. In a pooled count, two layers that collapse
onto different experts would cancel out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from jetmoe.autograd import require_first_order
from jetmoe.low_rank import is_plain_linear

IGNORED = -100
# Memory for the fp32 logits of one chunk, in bytes.
CHUNK_BYTES = 2**25


def chunked_cross_entropy(hidden: Tensor, head: nn.Module, labels: Tensor) -> Tensor:
    """Return the summed next-token cross-entropy of hidden states in fp32, computed in chunks of logits.

    Only rows with a label are multiplied by the head. For a plain linear head, the forward pass also computes the
    gradients; for others, such as heads with adapters, the backward pass recomputes the logits.

    Args:
        hidden: `[T, D]`.
        head: maps `[n, D]` to logits `[n, V]`.
        labels: int64 `[T]`, already shifted; -100 is ignored.
    """
    labelled = (labels != IGNORED).nonzero().squeeze(1)  # [n]
    hidden, labels = hidden.index_select(0, labelled), labels[labelled]
    if is_plain_linear(head):
        return _ChunkedCrossEntropy.apply(hidden, head.weight, labels)
    size = max(1, CHUNK_BYTES // (4 * head.out_features))  # type: ignore[operator]
    chunks = zip(hidden.split(size), labels.split(size), strict=True)
    losses = [checkpoint(_cross_entropy, head, *chunk, use_reentrant=False) for chunk in chunks]
    return torch.stack(losses).sum() if losses else hidden.float().sum() * 0


def _cross_entropy(head: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(head(rows).float(), labels, reduction="sum")


def load_balancing_loss(router_logits: Sequence[Tensor], top_k: int, attention_mask: Tensor | None = None) -> Tensor:
    """Return the mean of `E * sum_e f_e * P_e` over routers (Switch Transformer, arXiv 2101.03961, equations 4 to 6).

    `f_e` is the share of tokens routed to expert e, and `P_e` is its mean probability. Each token has `top_k` experts,
    so the `f_e` sum to `top_k`. The loss is `top_k` at perfect balance and up to `E` at collapse onto `top_k` experts.

    Args:
        router_logits: one `[T, E]` per router.
        top_k: number of experts per token, K.
        attention_mask: `[B, S]` with B * S = T, 0 at padding.
    """
    weights = _token_weights(router_logits[0], attention_mask)  # [T, 1]
    losses = []
    for logits in router_logits:
        probs = logits.float().softmax(dim=-1)  # [T, E]
        picked = torch.zeros_like(probs).scatter(1, logits.topk(top_k, dim=-1).indices, 1.0)  # [T, E]
        share = (picked * weights.to(probs.device)).sum(0)  # [E]
        mean_prob = (probs * weights.to(probs.device)).sum(0)  # [E]
        losses.append(logits.shape[-1] * (share * mean_prob).sum())
    return torch.stack([loss.to(losses[0].device) for loss in losses]).mean()


def router_z_loss(router_logits: Sequence[Tensor], attention_mask: Tensor | None = None) -> Tensor:
    """Return the mean of `logsumexp(logits)^2` over routers and tokens (ST-MoE, arXiv 2202.08906, equation 5)."""
    weights = _token_weights(router_logits[0], attention_mask)  # [T, 1]
    losses = [
        (logits.float().logsumexp(dim=-1, keepdim=True).square() * weights.to(logits.device)).sum()
        for logits in router_logits
    ]
    return torch.stack([loss.to(losses[0].device) for loss in losses]).mean()


def _token_weights(logits: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return weights `[T, 1]` that are 0 at padding and sum to 1."""
    if attention_mask is None or attention_mask.dim() != 2:
        return logits.new_full((len(logits), 1), 1 / len(logits), dtype=torch.float32)
    kept = attention_mask.reshape(-1, 1).to(logits.device, torch.float32)  # [T, 1]
    return kept / kept.sum().clamp(min=1)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        grad_head = torch.zeros_like(head) if ctx.needs_input_grad[1] else None
        size = max(1, CHUNK_BYTES // (4 * len(head)))
        for start in range(0, len(hidden), size):
            rows, targets = hidden[start : start + size], labels[start : start + size].unsqueeze(1)
            log_probs = F.log_softmax(rows @ head.t(), dim=-1, dtype=torch.float32)  # [n, V]
            total -= log_probs.gather(1, targets).sum()
            if grad_hidden is None and grad_head is None:
                continue
            slopes = log_probs.exp_()  # [n, V]
            slopes.scatter_add_(1, targets, slopes.new_full(targets.shape, -1.0))
            slopes = slopes.to(rows.dtype)
            if grad_hidden is not None:
                torch.mm(slopes, head, out=grad_hidden[start : start + size])
            if grad_head is not None:
                grad_head.addmm_(slopes.t(), rows)
        ctx.save_for_backward(grad_hidden, grad_head)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):
        require_first_order()
        scaled = (None if one is None else one * grad.to(one.dtype) for one in ctx.saved_tensors)
        return *scaled, None
