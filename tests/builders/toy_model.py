"""A two-layer random JetMoE, the model of most tests."""

import torch

from jetmoe import JetMoeConfig, JetMoeForCausalLM

TOY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "kv_channels": 8,
    "intermediate_size": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}


def toy_model(seed: int = 0, **changes) -> JetMoeForCausalLM:
    torch.manual_seed(seed)
    return JetMoeForCausalLM(JetMoeConfig(**{**TOY, **changes})).eval()
