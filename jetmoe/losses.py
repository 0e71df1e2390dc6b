"""Auxiliary losses of the routers, per layer and per router kind.

Both are computed for each router on its own and then averaged, so that two layers that collapse onto different
experts can't cancel out in a pooled count.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def load_balancing_loss(router_logits: Sequence[Tensor], top_k: int, attention_mask: Tensor | None = None) -> Tensor:
    """Mean over routers of `E * sum_e f_e * P_e` (Switch Transformer, arXiv 2101.03961, equations 4 to 6).

    `f_e` is the share of tokens that picked expert e and `P_e` its mean probability. With `top_k` picks a token the
    `f_e` add up to `top_k`, so perfect balance reads `top_k`, and collapse onto `top_k` experts reads up to `E`.

    Args:
        router_logits: one `[T, E]` per router.
        top_k: experts picked per token, K.
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
    """Mean over routers and tokens of `logsumexp(logits)^2` (ST-MoE, arXiv 2202.08906, equation 5)."""
    weights = _token_weights(router_logits[0], attention_mask)  # [T, 1]
    losses = [
        (logits.float().logsumexp(dim=-1, keepdim=True).square() * weights.to(logits.device)).sum()
        for logits in router_logits
    ]
    return torch.stack([loss.to(losses[0].device) for loss in losses]).mean()


def _token_weights(logits: Tensor, attention_mask: Tensor | None) -> Tensor:
    """`[T, 1]`, adds up to 1 over the tokens that are not padding."""
    if attention_mask is None or attention_mask.dim() != 2:
        return logits.new_full((len(logits), 1), 1 / len(logits), dtype=torch.float32)
    kept = attention_mask.reshape(-1, 1).to(logits.device, torch.float32)  # [T, 1]
    return kept / kept.sum().clamp(min=1)
