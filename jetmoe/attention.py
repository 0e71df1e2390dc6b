"""Attention with grouped queries, rotary position embeddings, and the attention kernels.

Shape letters are declared in `jetmoe/routing.py`; H key-value heads, C channels per head, K queries per head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from jetmoe import device, single_query
from jetmoe.autograd import has_custom_backward
from jetmoe.config import MoeConfig

# Queries per call of the CPU attention kernel. A single call for a whole prompt is a quarter slower.
CAUSAL_BLOCK = 128


class StaticKV:
    """Keys and values of one layer before the current position. The caller adds the `new` ones to the cache."""

    def __init__(self, keys: Tensor, values: Tensor, length: Tensor) -> None:
        self.keys, self.values = keys, values  # [B, H, size, C]
        self.length = length  # [1], number of positions that are filled
        self.new: tuple[Tensor, ...] = ()  # [B, H, 1, C] each


class GroupedAttention(nn.Module):
    """Attention in which K queries share each of the H key-value heads.

    Subclasses compute queries, keys and values. The K queries of a head are adjacent in our head order, as attention
    kernels expect for grouped queries.
    """

    by_query = False
    """Whether the heads of returned weights are sorted by query first, as transformers' JetMoE returns them."""

    def __init__(self, config: MoeConfig, layer_idx: int, groups: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = True
        self.heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        self.scaling = self.head_dim**-0.5
        self.num_key_value_groups = groups

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        past_key_values: Cache | StaticKV | None = None,
        output_attentions: bool = False,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """Rotate queries and keys, extend the cache, and compute attention.

        Args:
            query: `[B, S, K, H, C]`.
            key, value: `[B, S, H, C]`, of the new positions.

        Returns:
            `[B, S, K, H, C]` and, if requested, the weights `[B, heads, S, keys]`.
        """
        B, S, K, H, C = query.shape
        # Rotate queries and keys together: one pass instead of two.
        turned = rotate(torch.cat([query.reshape(B, S, K * H, C), key], dim=2), rotary)  # [B, S, K * H + H, C]
        query, key = turned.split([K * H, H], dim=2)
        query = query.view(B, S, K, H, C)
        key, value = key.transpose(1, 2), value.transpose(1, 2)  # [B, H, S, C]
        if isinstance(past_key_values, StaticKV):
            past = past_key_values
            past.new = key, value
            known = single_query.KVView(past.keys, past.values, past.length, key, value)
            return single_query.attend(query, known, mask, self.scaling), None
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)  # [B, H, keys, C]
        return self._attend(query, key, value, mask, output_attentions, **kwargs)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, output_attentions: bool, **kwargs
    ) -> tuple[Tensor, Tensor | None]:
        """Compute attention of `[B, S, K, H, C]` over keys and values `[B, H, keys, C]`."""
        B, S, K, H, C = query.shape
        implementation = self.config._attn_implementation
        is_sdpa = implementation == "sdpa" and kwargs.get("cache") is None  # continuous batching passes a paged cache
        if output_attentions and implementation not in ("eager", "sdpa"):
            raise ValueError(f"{implementation} attention returns no weights. Use attn_implementation='eager'.")
        dropout = self.config.attention_dropout if self.training else 0.0
        if output_attentions and not self.by_query:
            adjacent = query.permute(0, 3, 2, 1, 4).reshape(B, H * K, S, C)
            attended, weights = eager_attention(self, adjacent, key, value, mask, self.scaling, dropout)
            return attended.view(B, S, H, K, C).transpose(2, 3), weights
        if output_attentions:
            by_query = query.permute(0, 2, 3, 1, 4).reshape(B, K * H, S, C)
            key, value = key.repeat(1, K, 1, 1), value.repeat(1, K, 1, 1)  # [B, K * H, keys, C]
            attended, weights = eager_attention(self, by_query, key, value, mask, self.scaling, dropout)
            return attended.view(B, S, K, H, C), weights
        if is_sdpa and S == 1:
            # At a single position, all slots attend to the same keys. As query rows they need no repeated keys.
            attended = F.scaled_dot_product_attention(
                query.view(B, K, H, C).transpose(1, 2), key, value, attn_mask=mask, dropout_p=dropout
            )  # [B, H, K, C]
            return attended.transpose(1, 2).unsqueeze(1), None
        grouped = query.permute(0, 3, 2, 1, 4).reshape(B, H * K, S, C)
        reads = mask is None and not torch.is_grad_enabled()
        if is_sdpa and reads and S >= 2 * CAUSAL_BLOCK and device.on_cpu(query):
            attended = blockwise_causal_attention(grouped, key, value, dropout)  # [B, H * K, S, C]
            return attended.view(B, H, K, S, C).permute(0, 3, 2, 1, 4), None
        if is_sdpa:
            if _repeats_keys(grouped, mask):
                key, value = (one.repeat_interleave(K, dim=1) for one in (key, value))  # [B, H * K, keys, C]
            attended = F.scaled_dot_product_attention(
                grouped,
                key,
                value,
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=mask is None,
                enable_gqa=key.shape[1] < H * K,
            )  # [B, H * K, S, C]
            return attended.view(B, H, K, S, C).permute(0, 3, 2, 1, 4), None
        interface = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        attended, _ = interface(
            self, grouped, key, value, mask, dropout=dropout, scaling=self.scaling, **kwargs
        )  # [B, S, H * K, C]
        return attended.view(B, S, H, K, C).transpose(2, 3), None


def rotary_embedding(config: MoeConfig, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosine and sine `[B, S, 1, C]` of rotary position embeddings (arXiv 2104.09864), computed in fp32.

    `config.rope_parameters` can scale them for longer texts; see transformers' `modeling_rope_utils`.
    """
    turns, scaling = frequencies(config, position_ids)
    angles = position_ids.unsqueeze(-1).float() * turns  # [B, S, C / 2]
    angles = torch.cat([angles, angles], dim=-1).unsqueeze(2)  # [B, S, 1, C]
    return (angles.cos() * scaling).to(dtype), (angles.sin() * scaling).to(dtype)


def frequencies(config: MoeConfig, position_ids: Tensor) -> tuple[Tensor, float]:
    """Return the frequencies `[C / 2]` and the factor of cosine and sine."""
    kind = config.check_rope_type()
    if kind != "default":
        longest = position_ids.max() + 1 if kind == "dynamic" else None
        return ROPE_INIT_FUNCTIONS[kind](config, position_ids.device, seq_len=longest)
    theta = config.rope_parameters["rope_theta"]  # type: ignore[index]
    exponents = torch.arange(0, config.head_dim, 2, device=position_ids.device).float() / config.head_dim
    return 1.0 / theta**exponents, 1.0


def rotate(heads: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary embeddings to `[B, S, heads, C]`; channel i of the first half of C pairs with i of the second."""
    if has_custom_backward(heads):
        return _Rotate.apply(heads, *rotary)
    return _rotated(heads, *rotary)


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-second, first], dim=-1) * sin


class _Rotate(torch.autograd.Function):
    """Rotary embedding whose backward pass rotates the gradient back."""

    @staticmethod
    def forward(ctx, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.rotary = cos, sin
        return _rotated(heads, cos, sin)

    @staticmethod
    def backward(ctx, grad: Tensor):
        cos, sin = ctx.rotary
        return _rotated(grad, cos, -sin), None, None


def _repeats_keys(query: Tensor, mask: Tensor | None) -> bool:
    """Return whether the keys and values are repeated for each query of a head.

    Of PyTorch's kernels for GPUs, only flash attention supports grouped queries, and not with a mask. Without it,
    PyTorch would compute all scores in fp32, 2 GB a layer at 4,096 tokens of JetMoE-8B.
    """
    return device.on_gpu(query) and not (mask is None and device.has_flash_attention(query))


def blockwise_causal_attention(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """Compute causal attention `[B, H * K, S, C]` over `[B, H, S, C]` in blocks of queries with the keys up to them."""
    visible = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool, device=query.device).tril()
    parts = []
    for start in range(0, query.shape[2], CAUSAL_BLOCK):
        end = min(start + CAUSAL_BLOCK, query.shape[2])
        parts.append(
            F.scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, :end],
                value[:, :, :end],
                attn_mask=visible[start:end, :end],
                dropout_p=dropout,
                enable_gqa=True,
            )
        )
    return torch.cat(parts, dim=2)


def eager_attention(
    module: GroupedAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Return attention `[B, S, heads, C]` and its weights `[B, heads, S, keys]` for queries `[B, heads, S, C]`."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling  # [B, H * K, S, keys]
    if mask is None and query.shape[2] > 1:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    weights = F.dropout(scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype), dropout, module.training)
    return (weights @ value).transpose(1, 2), weights
