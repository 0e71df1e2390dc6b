"""Attention of a single position over the cached keys and values and its own, for compiled decoding steps.

Shape letters are declared in `jetmoe/routing.py`; H heads, C channels per head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class KVView(NamedTuple):
    """Keys and values that a position attends to."""

    keys: Tensor  # [B, H, size, C]
    values: Tensor  # [B, H, size, C]
    length: Tensor  # [], number of positions that are filled
    key: Tensor  # [B, H, 1, C], of the position itself
    value: Tensor  # [B, H, 1, C]


def attend(query: Tensor, known: KVView, mask: Tensor | None, scaling: float) -> Tensor:
    """Compute attention with sums, which Inductor fuses into few loops: `[B, 1, K, H, C]` -> `[B, 1, K, H, C]`.

    For a single position, the setup of an attention kernel takes longer than the attention itself.

    Args:
        mask: bool `[B or 1, 1, 1, size]`, False at masked keys.
    """
    key, value = known.key.float(), known.value.float()  # [B, H, 1, C]
    heads = query.squeeze(1).transpose(1, 2).float() * scaling  # [B, H, K, C]
    scores = (heads.unsqueeze(3) * known.keys.float().unsqueeze(2)).sum(-1)  # [B, H, K, size]
    before = torch.arange(known.keys.shape[2], device=query.device) < known.length  # [size]
    scores = scores.masked_fill(~(before if mask is None else before & mask), torch.finfo(scores.dtype).min)
    own = (heads * key).sum(-1, keepdim=True)  # [B, H, K, 1]
    highest = torch.maximum(scores.amax(-1, keepdim=True), own)
    weights, own = (scores - highest).exp(), (own - highest).exp()
    attended = (weights.unsqueeze(-1) * known.values.float().unsqueeze(2)).sum(3) + own * value  # [B, H, K, C]
    attended = attended / (weights.sum(-1, keepdim=True) + own)
    return attended.transpose(1, 2).unsqueeze(1).to(query.dtype)
