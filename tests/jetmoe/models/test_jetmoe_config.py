"""The configuration: legacy names, contradictions, unknown fields."""

import json
import logging

import pytest
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from jetmoe import JetMoeConfig

# config.json of the released jetmoe-8b, as quoted by public repositories that test against it.
RELEASED = {
    "architectures": ["JetMoEForCausalLM"],
    "model_type": "jetmoe",
    "activation": "silu",
    "glu": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "ffn_hidden_size": 5632,
    "kv_channels": 128,
    "layer_norm_epsilon": 1e-5,
    "moe_num_experts": 8,
    "moe_top_k": 2,
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_layers": 24,
    "n_positions": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rotary_percent": 1.0,
    "tie_word_embeddings": True,
    "vocab_size": 32000,
}


def test_released_config(tmp_path, caplog):
    (tmp_path / "config.json").write_text(json.dumps(RELEASED))
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is JetMoeConfig
    assert (config.num_hidden_layers, config.intermediate_size, config.num_local_experts) == (24, 5632, 8)
    assert (config.num_experts_per_tok, config.max_position_embeddings, config.rms_norm_eps) == (2, 4096, 1e-5)
    assert config.rope_parameters["rope_theta"] == 10000.0
    assert config.head_dim == 128


@pytest.mark.parametrize(
    ("legacy", "name", "value"),
    [
        ("moe_num_experts", "num_local_experts", 4),
        ("moe_top_k", "num_experts_per_tok", 1),
        ("n_positions", "max_position_embeddings", 2048),
        ("ffn_hidden_size", "intermediate_size", 77),
        ("n_layer", "num_hidden_layers", 3),
        ("n_embd", "hidden_size", 64),
    ],
)
def test_legacy_names_are_never_defaulted(legacy, name, value):
    assert getattr(JetMoeConfig(**{legacy: value}), name) == value


def test_save_and_load_keep_everything(tmp_path):
    config = JetMoeConfig(
        num_local_experts=4, rope_theta=5e5, expert_groups=[0, 1, 0, 1], num_labels=3, score_temperature=1.5
    )
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert again.groups == [0, 1, 0, 1]
    assert again.rope_parameters["rope_theta"] == 5e5
    assert again.num_labels == 3 and again.score_temperature == 1.5


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"moe_top_k": 3, "num_experts_per_tok": 2}, ["moe_top_k=3", "num_experts_per_tok=2"]),
        ({"num_layers": 24, "num_hidden_layers": 12}, ["num_layers=24", "num_hidden_layers=12"]),
        ({"num_attention_heads": 31}, ["31", "16 * 2 = 32", "Leave num_attention_heads out"]),
        ({"num_experts_per_tok": 9}, ["num_experts_per_tok is 9", "8"]),
        ({"glu": False}, ["glu"]),
        ({"kv_channels": 7}, ["kv_channels is 7"]),
        ({"num_local_experts": "many"}, ["num_local_experts is 'many'"]),
        ({"hidden_size": 0, "vocab_size": -1}, ["hidden_size is 0", "vocab_size is -1"]),
        ({"score_temperature": 0.0}, ["score_temperature is 0.0"]),
        ({"expert_groups": [0, 1]}, ["expert_groups has 2 entries for 8"]),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0}}, ["longrope", "yarn"]),
    ],
)
def test_contradictions_are_named(fields, words):
    with pytest.raises(ValueError) as error:
        JetMoeConfig(**fields)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_unknown_field_is_named_with_the_closest(caplog):
    transformers_logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        JetMoeConfig(num_local_expert=4)
    assert "num_local_expert. Did you mean num_local_experts?" in caplog.text
