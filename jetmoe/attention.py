"""JetMoE attention: a mixture of attention heads (MoA), rotary position embeddings, and the attention kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from jetmoe import single_query
from jetmoe.autograd import has_custom_backward
from jetmoe.config import JetMoeConfig
from jetmoe.experts.assignments import Routing, collect, combine, few_tokens, permute, repeat_tokens
from jetmoe.experts.experts import JetMoeExperts, chosen_linear, dispatched_linear, project, sorted_linear
from jetmoe.feed_forward import JetMoeRouter

# Queries per call of the CPU attention kernel. A single call for a whole prompt is a quarter slower.
CAUSAL_BLOCK = 128


class StaticKV:
    """Keys and values of one layer before the current position. The caller adds the `new` ones to the cache."""

    def __init__(self, keys: Tensor, values: Tensor, length: Tensor) -> None:
        self.keys, self.values = keys, values  # [B, H, size, C]
        self.length = length  # [1], number of positions that are filled
        self.new: tuple[Tensor, ...] = ()  # [B, H, 1, C] each


class JetMoeAttention(nn.Module):
    """Attention with experts as query and output projections. All experts share the keys and values."""

    def __init__(self, config: JetMoeConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = True
        self.heads = config.num_key_value_heads
        self.head_dim = config.kv_channels
        self.scaling = self.head_dim**-0.5
        # Slots of one key-value head are adjacent in our head order, as attention kernels expect for grouped queries.
        self.num_key_value_groups = config.num_experts_per_tok
        self.experts = JetMoeMoA(config)
        self.kv_proj = nn.Linear(config.hidden_size, 2 * self.heads * self.head_dim, bias=False)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        cache: Cache | StaticKV | None = None,
        output_attentions: bool = False,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None, Routing]:
        B, S, _ = hidden.shape
        K, H, C = self.num_key_value_groups, self.heads, self.head_dim
        query, routing = self.experts.map(hidden.flatten(0, 1))  # [T, K, H * C]
        key, value = project(self.kv_proj, hidden).view(B, S, 2 * H, C).split(H, dim=2)  # [B, S, H, C]
        # Rotate queries and keys together: one pass instead of two.
        turned = rotate(torch.cat([query.view(B, S, K * H, C), key], dim=2), rotary)  # [B, S, K * H + H, C]
        query, key = turned.split([K * H, H], dim=2)
        query = query.view(B, S, K, H, C)
        key, value = key.transpose(1, 2), value.transpose(1, 2)  # [B, H, S, C]
        if isinstance(cache, StaticKV):
            cache.new = key, value
            known = single_query.KVView(cache.keys, cache.values, cache.length, key, value)
            attended, attentions = single_query.attend(query, known, mask, self.scaling), None  # [B, 1, K, H, C]
        else:
            if cache is not None:
                key, value = cache.update(key, value, self.layer_idx)  # [B, H, keys, C]
            attended, attentions = self._attend(query, key, value, mask, output_attentions, **kwargs)
        return self.experts.reduce(attended.reshape(B * S * K, H * C), routing).view(B, S, -1), attentions, routing

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, output_attentions: bool, **kwargs
    ) -> tuple[Tensor, Tensor | None]:
        B, S, K, H, C = query.shape
        implementation = self.config._attn_implementation
        if output_attentions and implementation not in ("eager", "sdpa"):
            raise ValueError(f"{implementation} attention returns no weights. Use attn_implementation='eager'.")
        dropout = self.config.attention_dropout if self.training else 0.0
        if output_attentions:
            by_slot = query.permute(0, 2, 3, 1, 4).reshape(B, K * H, S, C)
            key, value = key.repeat(1, K, 1, 1), value.repeat(1, K, 1, 1)  # [B, K * H, keys, C]
            attended, weights = eager_attention(self, by_slot, key, value, mask, self.scaling, dropout)
            return attended.view(B, S, K, H, C), weights
        if implementation == "sdpa" and S == 1:
            # At a single position, all slots attend to the same keys. As query rows they need no repeated keys.
            attended = F.scaled_dot_product_attention(
                query.view(B, K, H, C).transpose(1, 2), key, value, attn_mask=mask, dropout_p=dropout
            )  # [B, H, K, C]
            return attended.transpose(1, 2).unsqueeze(1), None
        grouped = query.permute(0, 3, 2, 1, 4).reshape(B, H * K, S, C)
        reads = mask is None and not torch.is_grad_enabled()
        if implementation == "sdpa" and reads and S >= 2 * CAUSAL_BLOCK and query.device.type == "cpu":
            attended = blockwise_causal_attention(grouped, key, value, dropout)  # [B, H * K, S, C]
            return attended.view(B, H, K, S, C).permute(0, 3, 2, 1, 4), None
        if implementation == "sdpa":
            attended = F.scaled_dot_product_attention(
                grouped,
                key,
                value,
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=mask is None,
                enable_gqa=self.num_key_value_groups > 1,
            )  # [B, H * K, S, C]
            return attended.view(B, H, K, S, C).permute(0, 3, 2, 1, 4), None
        interface = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        attended, _ = interface(
            self, grouped, key, value, mask, dropout=dropout, scaling=self.scaling, **kwargs
        )  # [B, S, H * K, C]
        return attended.view(B, S, H, K, C).transpose(2, 3), None


class JetMoeMoA(nn.Module):
    """Mixture of attention heads: E pairs of query and output projections."""

    def __init__(self, config: JetMoeConfig) -> None:
        super().__init__()
        size = config.kv_channels * config.num_key_value_heads
        self.bias = nn.Parameter(torch.empty(config.hidden_size))
        self.input_linear = JetMoeExperts(config.num_local_experts, config.hidden_size, size)
        self.output_linear = JetMoeExperts(config.num_local_experts, size, config.hidden_size)
        self.router = JetMoeRouter(config)

    def map(self, tokens: Tensor) -> tuple[Tensor, Routing]:
        """Apply the query projections of each token's experts: `[T, D]` -> `[T, K, H * C]`."""
        routing = Routing(*self.router(tokens))
        if few_tokens(routing):
            rows = chosen_linear(self.input_linear, repeat_tokens(tokens, routing), routing)  # [A, H * C]
        else:
            rows = dispatched_linear(self.input_linear, tokens, routing)  # [A, H * C]
            rows = permute(rows, routing.sorted().inverse, routing.sorted().order)
        return rows.view(tokens.shape[0], routing.top_k, -1), routing

    def reduce(self, rows: Tensor, routing: Routing) -> Tensor:
        """Apply the output projections of the same experts and sum them by gate: `[A, H * C]` -> `[T, D]`."""
        if few_tokens(routing):
            return combine(chosen_linear(self.output_linear, rows, routing), routing.gates) + self.bias
        # Apply gates before the product, so that its result need not be saved for the gradient of the gates.
        rows = rows * routing.gates.flatten().unsqueeze(1)  # [A, H * C]
        rows = permute(rows, routing.sorted().order, routing.sorted().inverse)
        return collect(sorted_linear(self.output_linear, rows, routing), routing) + self.bias


def rotary_embedding(config: JetMoeConfig, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosine and sine `[B, S, 1, C]` of rotary position embeddings (arXiv 2104.09864), computed in fp32.

    `config.rope_parameters` can scale them for longer texts; see transformers' `modeling_rope_utils`.
    """
    frequencies, scaling = _frequencies(config, position_ids)
    angles = position_ids.unsqueeze(-1).float() * frequencies  # [B, S, C / 2]
    angles = torch.cat([angles, angles], dim=-1).unsqueeze(2)  # [B, S, 1, C]
    return (angles.cos() * scaling).to(dtype), (angles.sin() * scaling).to(dtype)


def _frequencies(config: JetMoeConfig, position_ids: Tensor) -> tuple[Tensor, float]:
    """Return the frequencies `[C / 2]` and the factor of cosine and sine."""
    kind = config.check_rope_type()
    if kind != "default":
        longest = position_ids.max() + 1 if kind == "dynamic" else None
        return ROPE_INIT_FUNCTIONS[kind](config, position_ids.device, seq_len=longest)
    theta = config.rope_parameters["rope_theta"]  # type: ignore[index]
    exponents = torch.arange(0, config.kv_channels, 2, device=position_ids.device).float() / config.kv_channels
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
    module: JetMoeAttention,
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
