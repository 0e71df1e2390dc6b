"""JetMoE: each layer is a mixture of attention heads (MoA) and a mixture of feed-forward experts (MoE).

Module and parameter names match the released checkpoints: released weights load here, and weights saved here load into
transformers' JetMoE. Shape letters are declared in `jetmoe/routing.py`; H key-value heads, C channels per head, and
A = T * K assignments of tokens to experts. Paper: arXiv 2404.07413.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from jetmoe.attention import GroupedAttention, StaticKV
from jetmoe.classification import MoeForSequenceClassification
from jetmoe.experts.assignments import Routing, collect, combine, few_tokens, permute, repeat_tokens
from jetmoe.experts.experts import LinearExperts, call_experts, feed_forward
from jetmoe.experts.products import Product, chosen_product, dispatched_product, sorted_product
from jetmoe.experts.router import Router
from jetmoe.linear import project, project_in_fp32
from jetmoe.modeling import MoeForCausalLM, MoeModel, MoePreTrainedModel
from jetmoe.models.jetmoe_config import JetMoeConfig
from jetmoe.native.parts import LayerParts, Part
from jetmoe.norm import RMSNorm

# For the norms inside layers, regardless of config.rms_norm_eps: the released models were trained with it.
BLOCK_NORM_EPS = 1e-6


class JetMoeDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: JetMoeConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        # In transformers' order, by which some PEFT tuners assign the vectors that layers share.
        self.mlp = JetMoeMoE(config)
        self.input_layernorm = RMSNorm(config.hidden_size, BLOCK_NORM_EPS)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, BLOCK_NORM_EPS)
        self.self_attention = JetMoeAttention(config, layer_idx)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        past_key_values: Cache | StaticKV | None = None,
        output_attentions: bool = False,
        **kwargs,
    ) -> tuple:
        attended, attentions, moa = self.self_attention(
            self.input_layernorm(hidden), mask, rotary, past_key_values, output_attentions, **kwargs
        )
        hidden = hidden + attended
        transformed, moe = self.mlp(self.post_attention_layernorm(hidden))
        return hidden + transformed, attentions, moa.logits, moa.experts, moe.logits, moe.experts

    def routers(self) -> tuple[Router, ...]:
        return self.self_attention.experts.router, self.mlp.router

    def parts(self) -> LayerParts:
        attention, mlp = self.self_attention, self.mlp
        moa = attention.experts
        return LayerParts(
            attention=attention,
            activation=self.config.activation_function,
            attention_norm=self.input_layernorm,
            changes=tuple(router.change for router in self.routers()),
            attention_router=Part(moa.router.layer),
            query=Part(moa.input_linear),
            projections=(Part(attention.kv_proj),),
            output=Part(moa.output_linear, bias=moa.bias),
            feed_forward_norm=self.post_attention_layernorm,
            router=Part(mlp.router.layer),
            gate_up=Part(mlp.input_linear),
            down=Part(mlp.output_linear, bias=mlp.bias),
        )


class JetMoeAttention(GroupedAttention):
    """Attention with experts as query and output projections. All experts share the keys and values."""

    by_query = True

    def __init__(self, config: JetMoeConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx, groups=config.num_experts_per_tok)
        self.experts = JetMoeMoA(config)
        self.kv_proj = nn.Linear(config.hidden_size, 2 * self.heads * self.head_dim, bias=False)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        past_key_values: Cache | StaticKV | None = None,
        output_attentions: bool = False,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None, Routing]:
        B, S, _ = hidden.shape
        K, H, C = self.num_key_value_groups, self.heads, self.head_dim
        query, routing = self.experts.map(hidden.flatten(0, 1))  # [T, K, H * C]
        key, value = project(self.kv_proj, hidden).view(B, S, 2 * H, C).split(H, dim=2)  # [B, S, H, C]
        attended, attentions = self.attend(
            query.view(B, S, K, H, C), key, value, mask, rotary, past_key_values, output_attentions, **kwargs
        )  # [B, S, K, H, C]
        return self.experts.reduce(attended.reshape(B * S * K, H * C), routing).view(B, S, -1), attentions, routing


class JetMoeMoA(nn.Module):
    """Mixture of attention heads: E pairs of query and output projections."""

    def __init__(self, config: JetMoeConfig) -> None:
        super().__init__()
        size = config.kv_channels * config.num_key_value_heads
        self.bias = nn.Parameter(torch.empty(config.hidden_size))
        self.input_linear = LinearExperts(config.num_local_experts, config.hidden_size, size)
        self.output_linear = LinearExperts(config.num_local_experts, size, config.hidden_size)
        self.router = JetMoeRouter(config)

    def map(self, tokens: Tensor) -> tuple[Tensor, Routing]:
        """Apply the query projections of each token's experts: `[T, D]` -> `[T, K, H * C]`."""
        routing = Routing(*self.router(tokens))
        if few_tokens(routing):
            rows = call_experts(self.input_linear, repeat_tokens(tokens, routing), routing, chosen_product)
        else:
            rows = call_experts(self.input_linear, tokens, routing, dispatched_product)  # [A, H * C]
            rows = permute(rows, routing.sorted().inverse, routing.sorted().order)
        return rows.view(tokens.shape[0], routing.top_k, -1), routing

    def reduce(self, rows: Tensor, routing: Routing) -> Tensor:
        """Apply the output projections of the same experts and sum them by gate: `[A, H * C]` -> `[T, D]`."""
        if few_tokens(routing):
            rows = call_experts(self.output_linear, rows, routing, chosen_product)  # [A, D]
            return combine(rows, routing.gates) + self.bias
        # Apply gates before the product, so that its result need not be saved for the gradient of the gates.
        rows = rows * routing.gates.flatten().unsqueeze(1)  # [A, H * C]
        rows = permute(rows, routing.sorted().order, routing.sorted().inverse)
        return collect(call_experts(self.output_linear, rows, routing, sorted_product), routing) + self.bias


class JetMoeMoE(nn.Module):
    """Mixture of E gated feed-forward experts."""

    def __init__(self, config: JetMoeConfig) -> None:
        super().__init__()
        self.activation = ACT2FN[config.activation_function]
        self.bias = nn.Parameter(torch.empty(config.hidden_size))
        self.input_linear = LinearExperts(config.num_local_experts, config.hidden_size, 2 * config.intermediate_size)
        self.output_linear = LinearExperts(config.num_local_experts, config.intermediate_size, config.hidden_size)
        self.router = JetMoeRouter(config)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Routing]:
        """Return the output, `[B, S, D]` -> `[B, S, D]`, and the routing of the B * S tokens."""
        tokens = hidden.flatten(0, 1)  # [T, D]
        routing = Routing(*self.router(tokens))

        def first(product: Product, rows: Tensor) -> Tensor:
            return call_experts(self.input_linear, rows, routing, product)

        def second(product: Product, rows: Tensor) -> Tensor:
            return call_experts(self.output_linear, rows, routing, product)

        result = feed_forward(first, second, self.activation, tokens, routing)  # [T, D]
        return (result + self.bias).view_as(hidden), routing


class RouterOutput(NamedTuple):
    # A tuple, because backward hooks only see the tensors of tuples.
    logits: Tensor  # [T, E] fp32
    experts: Tensor  # [T, K] int64, strongest first
    gates: Tensor  # [T, K], in the dtype of the tokens


class JetMoeRouter(Router):
    """Select K of E experts. The gates are a softmax over the selected logits only.

    Logits are in fp32: those of bf16 would break the ties between the slots of an upcycled model.
    """

    def __init__(self, config: JetMoeConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.layer = nn.Linear(config.hidden_size, config.num_local_experts, bias=False)

    def forward(self, tokens: Tensor) -> RouterOutput:
        logits = self.biased(project_in_fp32(self.layer, tokens))  # [T, E]
        picked, experts = self.select(logits)  # [T, K]
        return RouterOutput(logits, experts, self.scaled(picked.softmax(dim=-1), experts).to(tokens.dtype))


class JetMoePreTrainedModel(MoePreTrainedModel):
    config: JetMoeConfig
    config_class = JetMoeConfig
    _no_split_modules = ["JetMoeDecoderLayer"]


class JetMoeModel(JetMoePreTrainedModel, MoeModel):
    layer_class = JetMoeDecoderLayer


class JetMoeForCausalLM(JetMoePreTrainedModel, MoeForCausalLM):
    model_class = JetMoeModel


class JetMoeForSequenceClassification(JetMoePreTrainedModel, MoeForSequenceClassification):
    model_class = JetMoeModel
