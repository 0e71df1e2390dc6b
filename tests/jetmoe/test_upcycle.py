"""Upcycling preserves the function: on toy Llamas of every kind, and refuses what it can't do exactly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from jetmoe import JetMoeConfig, JetMoeForCausalLM, RoutingRecorder
from jetmoe import upcycle as upcycling
from jetmoe.routers import collect_router_inputs, fit_router_rows
from jetmoe.upcycle import dense_to_jetmoe, fitting_tokens, random_rows, upcycle
from tests.builders.stock import run_stock

TOY = {
    "vocab_size": 97,
    "hidden_size": 36,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    "pad_token_id": 0,
}
# A process of its own: importing jetmoe makes the Auto classes return ours.
STOCK_LOGITS = """
import sys, torch
from transformers import AutoModelForCausalLM
found = []
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__module__ == "transformers.models.jetmoe.modeling_jetmoe" and "jetmoe" not in sys.modules
    found.append(model(torch.arange(1, 40)[None]).logits.detach())
torch.save(found, sys.argv[1])
"""


def toy(**changes) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**TOY | changes)).eval()
    for name, parameter in model.named_parameters():
        spread = 0.3 if "norm" in name else 0.08
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=spread)
    return model


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).detach().norm() / wanted.norm())


@pytest.mark.parametrize("replicas", [1, 2, 4])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_function_is_preserved(replicas, tied, eps):
    dense = toy(tie_word_embeddings=tied, rms_norm_eps=eps)
    weights, config = dense_to_jetmoe(dense.state_dict(), dense.config, random_rows(dense.config, replicas))
    model = JetMoeForCausalLM(JetMoeConfig(**config)).eval()
    missing = model.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys and missing.missing_keys == (["lm_head.weight"] if tied else [])
    model.tie_weights()
    ids = torch.randint(1, 97, (3, 40))
    assert relative_error(model(ids).logits, dense(ids).logits) < 1e-5


def test_equal_heads_make_one_slot():
    dense = toy(num_key_value_heads=6)
    weights, config = dense_to_jetmoe(dense.state_dict(), dense.config, random_rows(dense.config, 3))
    assert (config["num_experts_per_tok"], config["num_local_experts"], config["expert_groups"]) == (1, 3, [0, 1, 2])
    assert weights["model.layers.0.mlp.input_linear.weight"].shape == (3, 96, 36)


def test_saved_checkpoints_give_the_same_logits_in_unmodified_transformers(tmp_path):
    """With a head of its own and without."""
    expected = []
    for tied in (True, False):
        dense = toy(tie_word_embeddings=tied)
        dense.save_pretrained(tmp_path / f"dense {tied}")
        upcycle(tmp_path / f"dense {tied}", tmp_path / f"sparse {tied}", replicas=2)
        expected.append(dense(torch.arange(1, 40)[None]).logits)
    folders = [tmp_path / f"sparse {tied}" for tied in (True, False)]
    run_stock(STOCK_LOGITS, tmp_path / "logits.pt", *folders)
    for logits, wanted in zip(torch.load(tmp_path / "logits.pt", weights_only=True), expected, strict=True):
        assert relative_error(logits, wanted) < 1e-5


def test_every_token_takes_all_slots_of_one_replica():
    dense = toy()
    weights, config = dense_to_jetmoe(dense.state_dict(), dense.config, random_rows(dense.config, 4))
    model = JetMoeForCausalLM(JetMoeConfig(**config)).eval()
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    ids = torch.randint(1, 97, (1, 60))
    with RoutingRecorder(model, capacity=60) as recorder, torch.no_grad():
        model(ids)
    trace = recorder.trace(ids[0].tolist(), [""] * 60, True)
    groups = trace.groups[trace.experts]  # [L, N, T, K]
    assert (groups == groups[..., :1]).all() and len(set(groups.flatten())) > 1
    assert abs(trace.gates.astype(float) - 1 / 3).max() < 1e-3


def test_router_inputs_are_those_of_the_twin():
    dense = toy()
    ids = torch.randint(1, 97, (30,))
    inputs = collect_router_inputs(dense, ids).float()  # [L, 2, T, D]
    weights, config = dense_to_jetmoe(dense.state_dict(), dense.config, random_rows(dense.config, 4))
    model = JetMoeForCausalLM(JetMoeConfig(**config)).eval()
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    logits = model(ids[None], output_router_logits=True).router_logits  # L * 2 of [T, E]
    for index, found in enumerate(logits):
        name = ("self_attention.experts.router", "mlp.router")[index % 2]
        rows = weights[f"model.layers.{index // 2}.{name}.layer.weight"]
        torch.testing.assert_close(inputs[index // 2, index % 2] @ rows.T, found, atol=5e-3, rtol=5e-3)


def test_fitted_rows_find_clusters_and_balance_them():
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(4, 24, generator=generator) * 3
    truth = torch.arange(800) % 4
    inputs = centres[truth] + torch.randn(800, 24, generator=generator) + 5.0
    found = (inputs @ fit_router_rows(inputs, 4).T).argmax(-1)
    assert [found[truth == cluster].unique().numel() for cluster in range(4)] == [1, 1, 1, 1]
    assert found.bincount().tolist() == [200] * 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "num_attention_heads is 4.*which is 3"),
        ({"intermediate_size": 50}, "intermediate_size is 50.*3 query heads"),
        ({"attention_bias": True}, "attention_bias is on"),
        ({"mlp_bias": True}, "mlp_bias is on"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope_type is 'linear'"),
    ],
)
def test_shapes_that_do_not_fit_are_named(changes, words):
    config = LlamaConfig(**TOY | changes)
    with pytest.raises(ValueError, match=words):
        dense_to_jetmoe({}, config, torch.zeros(2, 2, 4, 36))


@pytest.mark.parametrize("replicas", [0, 86])
def test_replicas_have_limits(replicas):
    with pytest.raises(ValueError, match=f"replicas is {replicas}; 3 slots allow 1 to 85"):
        dense_to_jetmoe({}, LlamaConfig(**TOY), torch.zeros(2, 2, replicas, 36))


def test_sources_that_are_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"neither a \.gguf file nor a folder with a config\.json"):
        upcycle(tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(ValueError, match=r"broken\.gguf can't be read"):
        upcycle(tmp_path / "broken.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_architecture_is_named(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="architecture is gpt2; upcycling needs llama"):
        upcycle(tmp_path, tmp_path / "out")


def test_a_checkpoint_with_missing_weights_is_refused(tmp_path):
    weights = toy().state_dict()
    del weights["model.layers.1.mlp.up_proj.weight"]
    toy().save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match=r"lacks 1 weights .*layers\.1\.mlp\.up_proj"):
        upcycle(tmp_path, tmp_path / "out")


def test_folder_keeps_its_tokenizer_and_can_be_fitted(tmp_path, starter_path):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(starter_path)
    source = tmp_path / "dense"
    toy(vocab_size=len(tokenizer)).save_pretrained(source)
    tokenizer.save_pretrained(source)
    (tmp_path / "text.txt").write_text("A mixture of experts answers. " * 30)
    tokens = fitting_tokens(source, [tmp_path / "text.txt"])
    told: list[tuple[float, str]] = []
    out = upcycle(source, tmp_path / "out", 2, token_ids=tokens, progress=lambda *step: told.append(step))
    assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert json.loads((out / "config.json").read_text())["expert_groups"] == [0, 1] * 3
    assert told[0][0] == 0.0 and told[-1][0] == 1.0 and [step[0] for step in told] == sorted(step[0] for step in told)
    assert isinstance(out, Path)


def test_no_empty_shard_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(upcycling, "SHARD_BYTES", 4)
    tensors = [("a", torch.zeros(2)), ("b", torch.zeros(2))]
    upcycling.save_shards(iter(tensors), tmp_path, lambda share: None, layers=1)
    assert sorted(file.name for file in tmp_path.glob("*.safetensors")) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
