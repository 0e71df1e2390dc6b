"""Two-layer random models, one of each family; the JetMoE is the model of most tests."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import jetmoe  # noqa: F401  registers the classes

COMMON = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
TOY = {**COMMON, "model_type": "jetmoe", "kv_channels": 8, "num_local_experts": 4}
TOYS = {
    "jetmoe": TOY,
    "olmoe": {**COMMON, "model_type": "olmoe", "num_attention_heads": 4, "num_experts": 4, "eos_token_id": 2},
}


def toy_model(seed: int = 0, family: str = "jetmoe", **changes) -> Any:
    """Return the toy of a family with changed settings; settings that only JetMoE has are ignored for others."""
    torch.manual_seed(seed)
    if family != "jetmoe":
        changes = {name: value for name, value in changes.items() if name != "kv_channels"}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**TOYS[family], **changes})).eval()
