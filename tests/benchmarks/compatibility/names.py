"""Names of the family that the rows run with, `$COMPATIBILITY_FAMILY`."""

from __future__ import annotations

import os
from dataclasses import dataclass

ATTENTION, MLP = "model.layers.0.self_attention", "model.layers.0.mlp"


@dataclass(frozen=True)
class Names:
    title: str
    linear: str
    """A linear layer of attention."""
    other: str
    """Another linear layer."""
    others: str
    """What labels call it."""
    moe: list[str]
    """The weights of feed-forward experts."""
    moa: list[str]
    """More weights that adapters change by name: attention experts, or routers that are no linear layers."""
    moas: str
    hooked: dict[str, str]
    """Modules by their labels."""
    biased: str
    """What labels call the last linear layer of `hooked`."""
    normed: tuple[str, ...]
    """Linear layers whose scale a norm after them removes."""
    parts: tuple[str, ...]
    """Parts of parameters' names."""


NAMES = {
    "jetmoe": Names(
        title="JetMoE",
        linear="kv_proj",
        other="router.layer",
        others="routers",
        moe=["mlp.input_linear.weight", "mlp.output_linear.weight"],
        moa=["experts.input_linear.weight", "experts.output_linear.weight"],
        moas="attention experts",
        hooked={
            "kv_proj": f"{ATTENTION}.kv_proj",
            "attention router": f"{ATTENTION}.experts.router",
            "attention router's layer": f"{ATTENTION}.experts.router.layer",
            "feed-forward router": f"{MLP}.router",
            "feed-forward router's layer": f"{MLP}.router.layer",
            "attention experts' input_linear": f"{ATTENTION}.experts.input_linear",
            "attention experts' output_linear": f"{ATTENTION}.experts.output_linear",
            "feed-forward experts' input_linear": f"{MLP}.input_linear",
            "feed-forward experts' output_linear": f"{MLP}.output_linear",
            "self_attention": ATTENTION,
        },
        biased="a router",
        normed=(),
        parts=("kv_proj", "router", "input_linear", "norm", "embed_tokens", "bias"),
    ),
    "olmoe": Names(
        title="OLMoE",
        linear="v_proj",
        other="o_proj",
        others="o_proj",
        moe=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        moa=["mlp.gate.weight"],
        moas="routers",
        hooked={
            **{name: f"model.layers.0.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
            "q_norm": "model.layers.0.self_attn.q_norm",
            "router": f"{MLP}.gate",
            "experts": f"{MLP}.experts",
            "self_attn": "model.layers.0.self_attn",
        },
        biased="o_proj",
        normed=("q_proj", "k_proj"),
        parts=("v_proj", "gate.weight", "gate_up_proj", "norm", "embed_tokens", "o_proj"),
    ),
}
FAMILY = os.environ.get("COMPATIBILITY_FAMILY", "jetmoe")
HERE = NAMES[FAMILY]
LINEAR, OTHER, OTHERS = HERE.linear, HERE.other, HERE.others
MOE, MOA = HERE.moe, HERE.moa

CRASH = "Crash"
"""The error of a row whose process ended, or took too long."""
