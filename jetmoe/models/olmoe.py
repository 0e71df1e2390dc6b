"""OLMoE: dense attention with normed queries and keys, and many small feed-forward experts.

Module and parameter names are those of transformers' OLMoE. Shape letters are declared in `jetmoe/routing.py`; H
key-value heads, G query heads for each of them, C channels per head. Paper: arXiv 2409.02060.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.modeling_layers import GradientCheckpointingLayer

from jetmoe.attention import GroupedAttention, StaticKV
from jetmoe.autograd import no_autocast
from jetmoe.classification import MoeForSequenceClassification
from jetmoe.config import MoeConfig
from jetmoe.experts.assignments import Routing
from jetmoe.experts.experts import NO_LOW_RANKS, GatedExperts, LowRanks, call_experts
from jetmoe.experts.router import Router
from jetmoe.families import Family, Targets, register
from jetmoe.linear import add_low_rank, product, project, wide, wide_dtype
from jetmoe.low_rank import is_wrapped, split_adapters, unwrapped, why_not_split
from jetmoe.modeling import MoeForCausalLM, MoeModel, MoePreTrainedModel
from jetmoe.native.parts import LayerParts, Part
from jetmoe.norm import RMSNorm

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
FAMILY = register(
    Family(
        name="OLMoE",
        model_type="olmoe",
        experts={"MoE": EXPERTS},
        projections=PROJECTIONS,
        routers=Targets(parameters=("mlp.gate.weight",)),
        parts={
            "attention projections": tuple(f"{name}.weight" for name in PROJECTIONS),
            "MLP experts": (*EXPERTS, "mlp.experts.weight"),
            "routers": ("mlp.gate.weight",),
            "norms and biases": ("norm.weight", "bias"),
            "embeddings and head": ("embed_tokens.weight", "lm_head.weight"),
            "score head": ("score.weight",),
        },
    )
)


class OlmoeConfig(MoeConfig):
    """Configuration of an OLMoE model. The defaults are those of transformers' class.

    Args:
        vocab_size: vocabulary size.
        hidden_size: width of the residual stream, D.
        intermediate_size: width inside a feed-forward expert.
        num_hidden_layers: number of layers, L.
        num_attention_heads: number of query heads.
        num_key_value_heads: number of key-value heads, H; defaults to num_attention_heads.
        head_dim: dimension of a head; defaults to hidden_size / num_attention_heads.
        hidden_act: activation of the gate half of a feed-forward expert.
        max_position_embeddings: maximum sequence length, in tokens.
        initializer_range: standard deviation of initial weights.
        rms_norm_eps: epsilon of all norms.
        use_cache: return the key-value cache.
        tie_word_embeddings: use the transposed embedding as the head.
        rope_parameters: `{"rope_type": "default", "rope_theta": 10000.0}`; a plain `rope_theta` is accepted.
        attention_bias: add a bias to the projections of attention.
        attention_dropout: dropout of attention probabilities during training.
        clip_qkv: largest absolute value of queries, keys and values before the rotation; None disables it.
        num_experts_per_tok: number of experts that a router selects per token, K.
        num_experts: number of experts of a layer, E.
        output_router_logits: return the router logits and the auxiliary loss.
        router_aux_loss_coef: weight of the load-balancing loss in the loss.
        z_loss_coef: weight of the router z-loss in the loss (0.001 in the paper, section 3); 0 disables it.
        norm_topk_prob: divide the gates by their sum.
        score_temperature: temperature of a classifier with one label per text; see `JetMoeConfig`.
        score_prompt: prompt of a classifier, with {text} where the text belongs; see `JetMoeConfig`.
        score_with_tfidf: whether a TF-IDF model is saved beside the classifier; see `JetMoeConfig`.

    Raises:
        ValueError: fields contradict each other; the message names them and the fix.
    """

    model_type = "olmoe"
    family = FAMILY
    attribute_map = {"num_local_experts": "num_experts", "aux_loss_coef": "router_aux_loss_coef"}

    vocab_size: int = 50304
    hidden_size: int = 2048
    intermediate_size: int = 2048
    num_hidden_layers: int = 16
    num_attention_heads: int = 16
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    use_cache: bool = True
    pad_token_id: int | None = 1
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 50279
    tie_word_embeddings: bool = False
    rope_parameters: dict | None = None
    attention_bias: bool = False
    attention_dropout: float | int = 0.0
    clip_qkv: float | None = None
    num_experts_per_tok: int = 8
    num_experts: int = 64
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.01
    z_loss_coef: float = 0.0
    norm_topk_prob: bool = False
    score_temperature: float = 1.0
    score_prompt: str = "{text}"
    score_with_tfidf: bool = False

    def __post_init__(self, **kwargs) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // max(self.num_attention_heads, 1)
        self.check()
        super().__post_init__(**kwargs)
        self.check_rope_type()

    def contradictions(self) -> list[str]:
        problems = super().contradictions()
        assert self.num_key_value_heads is not None and self.head_dim is not None
        if self.num_attention_heads % self.num_key_value_heads:
            problems.append(
                f"num_attention_heads is {self.num_attention_heads}, not a multiple of num_key_value_heads, which is "
                f"{self.num_key_value_heads}"
            )
        if self.head_dim * self.num_attention_heads != self.hidden_size:
            problems.append(
                f"hidden_size is {self.hidden_size}, but {self.num_attention_heads} heads of {self.head_dim} channels "
                f"have {self.num_attention_heads * self.head_dim}"
            )
        if self.clip_qkv is not None and not self.clip_qkv > 0:
            problems.append(f"clip_qkv is {self.clip_qkv}, it must be above 0 or null")
        return problems

    @property
    def gates_sum_to_one(self) -> bool:
        return self.norm_topk_prob


class OlmoeDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: OlmoeConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.self_attn = OlmoeAttention(config, layer_idx)
        self.mlp = OlmoeMoE(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        past_key_values: Cache | StaticKV | None = None,
        output_attentions: bool = False,
        **kwargs,
    ) -> tuple:
        attended, attentions = self.self_attn(
            self.input_layernorm(hidden), mask, rotary, past_key_values, output_attentions, **kwargs
        )
        hidden = hidden + attended
        transformed, routing = self.mlp(self.post_attention_layernorm(hidden))
        return hidden + transformed, attentions, routing.logits, routing.experts

    def routers(self) -> tuple[Router, ...]:
        return (unwrapped(self.mlp.gate),)

    def parts(self) -> LayerParts:
        attention, experts = self.self_attn, self.mlp.experts
        return LayerParts(
            attention=attention,
            activation=self.config.hidden_act,
            changes=tuple(router.change for router in self.routers()),
            attention_norm=self.input_layernorm,
            projections=(Part(attention.q_proj), Part(attention.k_proj), Part(attention.v_proj)),
            query_norm=attention.q_norm,
            key_norm=attention.k_norm,
            clip=attention.config.clip_qkv,
            output=Part(attention.o_proj),
            feed_forward_norm=self.post_attention_layernorm,
            router=Part(self.mlp.gate),
            gate_up=Part(experts, "gate_up_proj"),
            down=Part(experts, "down_proj"),
        )


class OlmoeAttention(GroupedAttention):
    """Attention whose queries and keys are normed over all heads together."""

    def __init__(self, config: OlmoeConfig, layer_idx: int) -> None:
        assert config.num_key_value_heads is not None
        super().__init__(config, layer_idx, groups=config.num_attention_heads // config.num_key_value_heads)
        sizes = self.heads * self.num_key_value_groups * self.head_dim, self.heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, sizes[0], bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, sizes[1], bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, sizes[1], bias=config.attention_bias)
        self.o_proj = nn.Linear(sizes[0], config.hidden_size, bias=config.attention_bias)
        self.q_norm = RMSNorm(sizes[0], config.rms_norm_eps)
        self.k_norm = RMSNorm(sizes[1], config.rms_norm_eps)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        past_key_values: Cache | StaticKV | None = None,
        output_attentions: bool = False,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        B, S, _ = hidden.shape
        G, H, C = self.num_key_value_groups, self.heads, self.head_dim
        query = self._clipped(self.q_norm(project(self.q_proj, hidden))).view(B, S, H, G, C)
        key = self._clipped(self.k_norm(project(self.k_proj, hidden))).view(B, S, H, C)
        value = self._clipped(project(self.v_proj, hidden)).view(B, S, H, C)
        attended, weights = self.attend(
            query.transpose(2, 3), key, value, mask, rotary, past_key_values, output_attentions, **kwargs
        )  # [B, S, G, H, C]
        return project(self.o_proj, attended.transpose(2, 3).reshape(B, S, H * G * C)), weights

    def _clipped(self, rows: Tensor) -> Tensor:
        limit = self.config.clip_qkv
        return rows if limit is None else rows.clamp(-limit, limit)


class OlmoeMoE(nn.Module):
    """Mixture of E gated feed-forward experts."""

    def __init__(self, config: OlmoeConfig) -> None:
        super().__init__()
        self.gate = OlmoeRouter(config)
        activation = ACT2FN[config.hidden_act]
        self.experts = GatedExperts(config.num_experts, config.hidden_size, config.intermediate_size, activation)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Routing]:
        """Return the output, `[B, S, D]` -> `[B, S, D]`, and the routing of the B * S tokens."""
        tokens = hidden.flatten(0, 1)  # [T, D]
        routing = Routing(*_call_router(self.gate, tokens))
        return call_experts(self.experts, tokens, routing).view_as(hidden), routing


class OlmoeRouter(Router):
    """Select K of E experts. The gates are their probabilities, which sum to less than 1 unless `norm_topk_prob`."""

    def __init__(self, config: OlmoeConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))

    def forward(self, tokens: Tensor, low_ranks: LowRanks = NO_LOW_RANKS) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits `[T, E]` in fp32, and experts and gates `[T, K]`, strongest first."""
        with no_autocast(tokens):
            rows = wide(tokens)
            logits = add_low_rank(product(self.weight.to(rows.dtype), rows), low_ranks.get("weight"), rows)
        logits = self.biased(logits)  # [T, E]
        picked, experts = self.select(logits.softmax(dim=-1))  # [T, K]
        if self.norm_topk_prob:
            picked = picked / picked.sum(dim=-1, keepdim=True)
        return logits, experts, self.scaled(picked, experts).to(tokens.dtype)


def _call_router(router: Any, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if not is_wrapped(router) or why_not_split(router):
        return router(tokens)
    layer, low_ranks = split_adapters(router, wide_dtype(tokens))
    return layer(tokens, low_ranks=low_ranks)


class OlmoePreTrainedModel(MoePreTrainedModel):
    config: OlmoeConfig
    config_class = OlmoeConfig
    _no_split_modules = ["OlmoeDecoderLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, OlmoeRouter):
            nn.init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)


# transformers applies a conversion to classes outside of it only if they register it.
register_checkpoint_conversion_mapping("olmoe", get_checkpoint_conversion_mapping("olmoe"), overwrite=True)


class OlmoeModel(OlmoePreTrainedModel, MoeModel):
    layer_class = OlmoeDecoderLayer


class OlmoeForCausalLM(OlmoePreTrainedModel, MoeForCausalLM):
    model_class = OlmoeModel


class OlmoeForSequenceClassification(OlmoePreTrainedModel, MoeForSequenceClassification):
    model_class = OlmoeModel
