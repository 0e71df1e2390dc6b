"""Upcycling preserves the function: on toy Llamas of every kind, and refuses what it can't do exactly."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from jetmoe import Intervention, JetMoeConfig, JetMoeForCausalLM, RoutingRecorder
from jetmoe import upcycle as upcycling
from jetmoe.gguf_tokenizer import tokenizer_from_metadata
from jetmoe.loading.checkpoint import CheckpointError
from jetmoe.routers import collect_router_inputs, fit_router_rows
from jetmoe.specialists import replica
from jetmoe.upcycle import dense_to_jetmoe, random_rows, upcycle
from tests.benchmarks.upcycle_exactness import toy_rows
from tests.builders.gguf import KINDS, vocabulary
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


@pytest.fixture(scope="module")
def tokenizer():
    words = vocabulary("gpt-2")
    fields = {"tokens": words.tokens, "token_type": words.kinds, **words.fields}
    return tokenizer_from_metadata("toy", {f"tokenizer.ggml.{name}": value for name, value in fields.items()})


@pytest.fixture
def source(tmp_path, tokenizer) -> Path:
    """A folder with a dense model and its tokenizer."""
    return save(tmp_path / "dense", toy(vocab_size=len(tokenizer)), tokenizer)


def save(folder: Path, model: LlamaForCausalLM, tokenizer) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def unread(monkeypatch) -> None:
    """Weights that must not be read."""
    monkeypatch.setattr(upcycling, "load_weights", lambda source: pytest.fail("the weights were read"))


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


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 32},
    ],
    ids=lambda rope: rope["rope_type"],
)  # fmt: skip
def test_scaled_rotary_embeddings_are_carried_over(rope):
    """On texts longer than the dynamic one's limit."""
    dense = toy(rope_parameters=rope | {"rope_theta": 5000.0}, max_position_embeddings=32)
    weights, config = dense_to_jetmoe(dense.state_dict(), dense.config, random_rows(dense.config, 2))
    model = JetMoeForCausalLM(JetMoeConfig(**config)).eval()
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    ids = torch.randint(1, 97, (2, 48))
    assert relative_error(model(ids).logits, dense(ids).logits) < 1e-5
    assert relative_error(toy()(ids).logits, dense(ids).logits) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_gives_the_dense_models_tokens(tmp_path, kind):
    """`python -m tests.benchmarks.upcycle_exactness` prints the table, with the starter's GGUF."""
    rows = list(toy_rows(tmp_path, kind, count=20, new_tokens=8))
    assert [row.source for row in rows] == ["GGUF, F32", "folder"] and all(row.exact for row in rows)


def test_equal_heads_make_one_slot():
    dense = toy(num_key_value_heads=6)
    weights, config = dense_to_jetmoe(dense.state_dict(), dense.config, random_rows(dense.config, 3))
    assert (config["num_experts_per_tok"], config["num_local_experts"], config["expert_groups"]) == (1, 3, [0, 1, 2])
    assert weights["model.layers.0.mlp.input_linear.weight"].shape == (3, 96, 36)


def test_saved_checkpoints_give_the_same_logits_in_unmodified_transformers(tmp_path, tokenizer):
    """With a head of its own and without."""
    expected = []
    for tied in (True, False):
        dense = toy(tie_word_embeddings=tied, vocab_size=len(tokenizer))
        save(tmp_path / f"dense {tied}", dense, tokenizer)
        upcycle(tmp_path / f"dense {tied}", tmp_path / f"sparse {tied}", replicas=2)
        expected.append(dense(torch.arange(1, 40)[None]).logits)
    folders = [tmp_path / f"sparse {tied}" for tied in (True, False)]
    run_stock(STOCK_LOGITS, tmp_path / "logits.pt", *folders)
    for logits, wanted in zip(torch.load(tmp_path / "logits.pt", weights_only=True), expected, strict=True):
        assert relative_error(logits, wanted) < 1e-5


def upcycled(dense: LlamaForCausalLM) -> JetMoeForCausalLM:
    """Four replicas of the dense model."""
    weights, config = dense_to_jetmoe(dense.state_dict(), dense.config, random_rows(dense.config, 4))
    model = JetMoeForCausalLM(JetMoeConfig(**config)).eval()
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    return model


def test_every_token_takes_all_slots_of_one_replica():
    model = upcycled(toy())
    ids = torch.randint(1, 97, (1, 60))
    with RoutingRecorder(model, capacity=60) as recorder, torch.no_grad():
        model(ids)
    trace = recorder.trace(ids[0].tolist(), [""] * 60, True)
    groups = trace.groups[trace.experts]  # [L, N, T, K]
    assert (groups == groups[..., :1]).all() and len(set(groups.flatten())) > 1
    assert abs(trace.gates.astype(float) - 1 / 3).max() < 1e-3


def test_a_masked_replica_changes_nothing_and_a_masked_slot_does():
    model = upcycled(toy())
    ids, change = torch.randint(1, 97, (1, 60)), Intervention(model.config)
    experts = replica(model.config, 0)
    with torch.no_grad():
        before = model(ids).logits
        with change.mask(experts).on(model):
            assert relative_error(model(ids).logits, before) < 1e-5
        with change.mask(experts[:1]).on(model):
            assert relative_error(model(ids).logits, before) > 1e-2


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
        (
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "short_factor": [1.0] * 4,
                    "long_factor": [1.0] * 4,
                    "factor": 2.0,
                    "original_max_position_embeddings": 32,
                    "rope_theta": 1e4,
                }
            },
            "rope_type is 'longrope'; JetMoE has default, linear, dynamic, yarn, llama3",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor is 0.5",
        ),
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


def test_folder_keeps_its_tokenizer_and_can_be_fitted(tmp_path, source):
    (tmp_path / "text.txt").write_text("A mixture of experts answers. " * 30)
    told: list[tuple[float, str]] = []
    progress = lambda *step: told.append(step)  # noqa: E731
    out = upcycle(source, tmp_path / "out", 2, texts=[tmp_path / "text.txt"], progress=progress)
    assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert json.loads((out / "config.json").read_text())["expert_groups"] == [0, 1] * 3
    assert told[0][0] == 0.0 and told[-1][0] == 1.0 and [step[0] for step in told] == sorted(step[0] for step in told)
    assert out == tmp_path / "out" and sorted(file.name for file in tmp_path.iterdir()) == ["dense", "out", "text.txt"]


@pytest.mark.parametrize(
    ("content", "words"), [(b"too short", "The texts have [0-9]+ tokens; 4 replicas need 128"), (b"\xff", "UTF-8")]
)
@pytest.mark.usefixtures("unread")
def test_texts_that_fit_no_routers_are_refused(tmp_path, source, content, words):
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        upcycle(source, tmp_path / "out", texts=[tmp_path / "text.txt"])


def test_end_tokens_and_sampling_are_carried_over(tmp_path, source):
    wanted = {"eos_token_id": [5, 7], "do_sample": True, "temperature": 0.6, "top_p": 0.9, "pad_token_id": 3}
    (source / "generation_config.json").write_text(json.dumps(wanted))
    out = upcycle(source, tmp_path / "out")
    assert json.loads((out / "generation_config.json").read_text()).items() >= wanted.items()
    loaded = JetMoeForCausalLM.from_pretrained(out).generation_config
    assert (loaded.eos_token_id, loaded.temperature, loaded.pad_token_id) == ([5, 7], 0.6, 3)


def test_without_a_generation_config_the_tokenizers_end_token_is_one(tmp_path, source, tokenizer):
    (source / "generation_config.json").unlink()
    end = LlamaConfig.from_pretrained(source).eos_token_id
    out = upcycle(source, tmp_path / "out")
    assert GenerationConfig.from_pretrained(out).eos_token_id == [end, tokenizer.eos_token_id]


@pytest.mark.usefixtures("unread")
def test_the_output_must_be_a_new_or_empty_folder_outside_the_source(tmp_path, source):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    for taken in (tmp_path / "full", tmp_path / "full" / "notes.txt", source):
        with pytest.raises(CheckpointError, match=r"is not empty. Name a new folder"):
            upcycle(source, taken)
    with pytest.raises(CheckpointError, match=r"is inside .*dense. Name a folder outside"):
        upcycle(source, source / "made" / "here")
    assert not (source / "made").exists()


@pytest.mark.usefixtures("unread")
def test_too_little_disk_is_seen_before_weights_are_read(tmp_path, source, monkeypatch):
    usage = namedtuple("usage", "total used free")(2**40, 2**40, 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"0\.1 GiB are needed under .* and 0\.0 GiB are free.*fewer replicas"):
        upcycle(source, tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("unread")
def test_router_rows_of_another_model_are_refused(tmp_path, source):
    with pytest.raises(CheckpointError, match=r"has the shape \(2, 2, 4, 8\); this model needs \(2, 2, 4, 36\)"):
        upcycle(source, tmp_path / "out", router_rows=torch.zeros(2, 2, 4, 8))


def test_a_result_that_differs_is_not_kept(tmp_path, source, monkeypatch):
    monkeypatch.setattr(upcycling, "BLOCK_NORM_EPS", 1e-3)  # not what the model computes with
    with pytest.raises(CheckpointError, match=r"does not compute what dense computes: logits differ by .*not kept"):
        upcycle(source, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["dense"]


def test_damaged_weights_are_named(tmp_path, tokenizer):
    model = toy(vocab_size=len(tokenizer))
    model.model.norm.weight.data[0] = torch.nan
    source = save(tmp_path / "dense", model, tokenizer)
    with pytest.raises(CheckpointError, match=r"logits that are not finite. Download them again"):
        upcycle(source, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["dense"]


def test_an_interrupted_conversion_leaves_nothing(tmp_path, source, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(upcycling, "check_result", stop)
    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        upcycle(source, tmp_path / "out")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["dense", "out"] and not any(
        (tmp_path / "out").iterdir()
    )


def test_no_empty_shard_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(upcycling, "SHARD_BYTES", 4)
    tensors = [("a", torch.zeros(2)), ("b", torch.zeros(2))]
    upcycling.save_shards(iter(tensors), tmp_path, lambda share: None, layers=1)
    assert sorted(file.name for file in tmp_path.glob("*.safetensors")) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
