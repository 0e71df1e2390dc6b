"""`JetMoeConfig`: every documented field, the field names of released checkpoints, and validation.

The released `config.json` files predate transformers' own class and use other names (`moe_num_experts`, `moe_top_k`,
`ffn_hidden_size`, `n_positions` ...). Their values are mapped to the current names, never replaced by a default.
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import wraps
from typing import Any

from transformers.utils import logging

from jetmoe.config import MoeConfig
from jetmoe.families import Family, Targets, register

logger = logging.get_logger(__name__)

# Attention and feed-forward experts both have an input_linear and an output_linear; the prefix distinguishes them.
MOA = ("experts.input_linear.weight", "experts.output_linear.weight")
MOE = ("mlp.input_linear.weight", "mlp.output_linear.weight")
FAMILY = register(
    Family(
        name="JetMoE",
        model_type="jetmoe",
        experts={"MoA": MOA, "MoE": MOE},
        projections=("kv_proj",),
        routers=Targets(("router.layer",)),
        parts={
            "attention experts": tuple(f"self_attention.{name}" for name in MOA),
            "MLP experts": MOE,
            "kv_proj": ("kv_proj.weight",),
            "routers": ("router.layer.weight",),
            "norms and biases": ("norm.weight", "bias"),
            "embeddings and head": ("embed_tokens.weight", "lm_head.weight"),
            "score head": ("score.weight",),
        },
    )
)
LEGACY_NAMES = {
    "ffn_hidden_size": "intermediate_size",
    "moe_num_experts": "num_local_experts",
    "moe_top_k": "num_experts_per_tok",
    "n_positions": "max_position_embeddings",
    "n_layer": "num_hidden_layers",
    "num_layers": "num_hidden_layers",
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "activation": "activation_function",
}
# Fixed by the architecture. A checkpoint with other values is a different model.
FIXED = {"glu": True, "rotary_percent": 1.0}
# Fields that other software writes into config.json. They cause no warning: only the base class may read them.
WITHOUT_EFFECT = {
    "layer_norm_epsilon", "apply_residual_connection_post_layernorm", "auto_map", "bias_dropout_fusion", "bias_linear",
    "conv_kernel", "gate_type", "gating_size", "hidden_dropout", "initializer_method", "n_inner",
    "resid_pdrop", "embd_pdrop", "attn_pdrop", "rotary", "rope_scaling", "rope_theta", "seq_length", "torch_dtype",
    "type_vocab_size", "use_flash_attn", "head_dim", "attn_implementation", "_attn_implementation", "name_or_path",
    "num_labels", "output_attentions", "quantization_config", "model_type",
}  # fmt: skip


def reads_legacy_names(config_class: Any) -> Any:
    """Make the generated `__init__` accept legacy names. Afterwards, a given value looks like a default."""
    generated = config_class.__init__

    @wraps(generated)
    def __init__(self, **kwargs) -> None:
        generated(self, **_modern_names(kwargs, set(config_class.__dataclass_fields__)))

    config_class.__init__ = __init__
    return config_class


@reads_legacy_names
class JetMoeConfig(MoeConfig):
    """Configuration of a JetMoE model. The defaults are those of transformers' class (JetMoE-4B).

    Args:
        vocab_size: vocabulary size.
        hidden_size: width of the residual stream, D.
        num_hidden_layers: number of blocks, L.
        num_key_value_heads: number of key-value heads, which all experts share; each attention expert has as many
            query heads.
        kv_channels: dimension of a head.
        intermediate_size: width inside a feed-forward expert.
        max_position_embeddings: maximum sequence length, in tokens.
        activation_function: activation of the gate half of a feed-forward expert.
        num_local_experts: number of experts in each MoA and each MoE layer, E.
        num_experts_per_tok: number of experts that each router selects per token, K.
        output_router_logits: return the router logits and the auxiliary loss.
        aux_loss_coef: weight of the load-balancing loss in the loss.
        z_loss_coef: weight of the router z-loss in the loss (0.001 in the JetMoE paper, section 4.2); 0 disables it.
        use_cache: return the key-value cache.
        tie_word_embeddings: use the transposed embedding as the head.
        rope_parameters: `{"rope_type": "default", "rope_theta": 10000.0}`; a plain `rope_theta` is accepted.
        rms_norm_eps: epsilon of the final norm ONLY. The norms inside blocks use 1e-6, like the released models and
            transformers.
        initializer_range: standard deviation of initial weights.
        attention_dropout: dropout of attention probabilities during training.
        expert_groups: `[E]`, the group of each expert in a model with tied experts (see `jetmoe.upcycle`); None means
            that no experts are tied.
        score_temperature: temperature of a classifier with one label per text. Dividing the logits by it calibrates
            the confidence (arXiv 1706.04599). The model itself does not use it.
        score_prompt: prompt of a classifier, with {text} where the text belongs. Fill it before the tokenizer.
        score_with_tfidf: whether a TF-IDF model is saved beside the classifier, whose logits are added. The model
            itself does not use it.

    Raises:
        ValueError: fields contradict each other; the message names them and the fix.
    """

    model_type = "jetmoe"
    family = FAMILY
    attribute_map = {"head_dim": "kv_channels", "num_experts": "num_local_experts"}

    vocab_size: int = 32000
    hidden_size: int = 2048
    num_hidden_layers: int = 12
    num_key_value_heads: int = 16
    kv_channels: int = 128
    intermediate_size: int = 5632
    max_position_embeddings: int = 4096
    activation_function: str = "silu"
    num_local_experts: int = 8
    num_experts_per_tok: int = 2
    output_router_logits: bool = False
    aux_loss_coef: float = 0.01
    z_loss_coef: float = 0.0
    use_cache: bool = True
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    pad_token_id: int | None = None
    tie_word_embeddings: bool = True
    rope_parameters: dict | None = None
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.01
    attention_dropout: float | int = 0.0
    expert_groups: list[int] | None = None
    score_temperature: float = 1.0
    score_prompt: str = "{text}"
    score_with_tfidf: bool = False

    def __post_init__(self, **kwargs) -> None:
        self.check()
        query_heads = self.num_key_value_heads * self.num_experts_per_tok
        given = kwargs.pop("num_attention_heads", query_heads)
        if given != query_heads:
            raise ValueError(
                f"num_attention_heads is {given}, but num_key_value_heads * num_experts_per_tok is "
                f"{self.num_key_value_heads} * {self.num_experts_per_tok} = {query_heads}. Leave num_attention_heads "
                "out, or make the three agree."
            )
        self.num_attention_heads = query_heads
        super().__post_init__(**kwargs)
        self.check_rope_type()

    def contradictions(self) -> list[str]:
        problems = super().contradictions()
        if self.expert_groups is not None and len(self.expert_groups) != self.num_local_experts:
            problems.append(f"expert_groups has {len(self.expert_groups)} entries for {self.num_local_experts} experts")
        return problems


def _modern_names(kwargs: dict, fields: set[str]) -> dict:
    """Rename legacy fields and warn about unknown ones.

    Raises:
        ValueError: a legacy and a current name have different values, or a field describes another architecture.
    """
    kwargs = dict(kwargs)
    for old, new in LEGACY_NAMES.items():
        if old not in kwargs:
            continue
        value = kwargs.pop(old)
        if kwargs.setdefault(new, value) != value:
            raise ValueError(
                f"The configuration sets both {old}={value} and {new}={kwargs[new]}, two names of the same field. "
                f"Remove the wrong one."
            )
    for name, value in FIXED.items():
        if kwargs.pop(name, value) != value:
            raise ValueError(f"JetMoE supports only {name}={value}. Use a checkpoint with that value.")
    _warn_of_unknown(kwargs, fields)
    return kwargs


def _warn_of_unknown(kwargs: dict, fields: set[str]) -> None:
    known = fields | WITHOUT_EFFECT | {"num_attention_heads"}
    for name in sorted(name for name in kwargs if name not in known and not name.startswith("_")):
        close = get_close_matches(name, [*fields, *LEGACY_NAMES], n=1)
        hint = f" Did you mean {close[0]}?" if close else " It is ignored: remove it or check its spelling."
        logger.warning_once(f"JetMoeConfig has no field {name}.{hint}")
