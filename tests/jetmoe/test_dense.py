"""Folders for upcycling: what is wrong with them is said before the weights are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from jetmoe.dense import load_dense, open_dense
from jetmoe.gguf_tokenizer import tokenizer_from_gguf
from jetmoe.loading.checkpoint import CheckpointError
from tests.builders.gguf import toy_llama, vocabulary, write_gguf


@pytest.fixture
def source(tmp_path) -> Path:
    words = vocabulary("gpt-2")
    model = toy_llama(len(words.tokens))
    folder = tmp_path / "dense"
    model.save_pretrained(folder)
    tokenizer_from_gguf(write_gguf(tmp_path / "dense.gguf", model, words)).save_pretrained(folder)
    return folder


def change(folder: Path, **fields) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_a_folder_and_its_gguf_are_the_same_model(source):
    folder, gguf = load_dense(source), load_dense(source.with_suffix(".gguf"))
    for name, weight in folder.state_dict().items():
        torch.testing.assert_close(gguf.state_dict()[name], weight, rtol=0, atol=0)


def test_no_checkpoint_is_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"neither a \.gguf file nor a folder with a config\.json"):
        open_dense(tmp_path / "nothing")


def test_another_architecture_is_named(tmp_path):
    GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is a 'gpt2' model; upcycling needs the architecture 'llama'"):
        open_dense(tmp_path)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "mistral"}, "'mistral' model"),
        ({"quantization_config": {"bits": 4}}, "is quantized. Use the folder of the 16-bit model"),
        ({"hidden_size": "wide"}, "config.json has invalid values: hidden_size"),
        ({"num_attention_heads": 0, "head_dim": 8}, "num_attention_heads is 0"),
        ({"hidden_size": 50}, "config.json has invalid values.*multiple of the number of attention heads"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps is 0.0"),
        ({"num_hidden_layers": 3}, "lacks .*layers.2"),
        ({"num_hidden_layers": 1}, "also has .*layers.1"),
        ({"intermediate_size": 90}, r"mlp.down_proj.weight in the shape \(48, 96\), not \(48, 90\)"),
        ({"vocab_size": 640}, r"lm_head.weight in the shape \(705, 48\), not \(640, 48\)"),
    ],
)
def test_config_and_weights_that_disagree_are_refused(source, fields, words):
    change(source, **fields)
    with pytest.raises(CheckpointError, match=words):
        open_dense(source)


def test_an_end_token_of_null_is_none(source):
    """transformers' default would be token 2, which is an ordinary one here."""
    (source / "generation_config.json").unlink()
    change(source, eos_token_id=None)
    found = open_dense(source)
    assert found.config.eos_token_id is None
    assert found.generation["eos_token_id"] == found.tokenizer.eos_token_id


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_a_damaged_config_is_named(source, text):
    (source / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config.json is damaged .*download it again"):
        open_dense(source)


def test_older_names_of_rotary_scaling_are_read(source):
    change(source, rope_parameters=None, rope_theta=5000.0, rope_scaling={"type": "linear", "factor": 2.0})
    found = open_dense(source).config.rope_parameters
    assert (found["rope_type"], found["factor"], found["rope_theta"]) == ("linear", 2.0, 5000.0)


def test_old_checkpoints_store_frequencies(source):
    weights = load_file(source / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    assert open_dense(source).config.num_hidden_layers == 2


def test_a_folder_of_pickles_is_refused(source):
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"holds pickle files .*Use a revision with safetensors"):
        open_dense(source)


def test_truncated_weights_are_named(source):
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model.safetensors is truncated in .*Download"):
        open_dense(source)


def test_a_tokenizer_larger_than_the_embedding_is_refused(source):
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens([AddedToken("<new>")])
    tokenizer.save_pretrained(source)
    with pytest.raises(CheckpointError, match=r"tokens up to id 705, but the embedding has 705 rows.*resize_token"):
        open_dense(source)


def test_a_missing_or_damaged_tokenizer_is_named(source):
    (source / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": 3}}')
    with pytest.raises(CheckpointError, match=r"The tokenizer of .*dense can't be read"):
        open_dense(source)
    (source / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no tokenizer. Add the model's tokenizer.json"):
        open_dense(source)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "generation_config.json is damaged"),
        ("3", "generation_config.json is damaged"),
        ('{"eos_token_id": [1, 9999]}', "The end token 9999 .* has no row in the embedding, which has 705"),
        ('{"eos_token_id": "end"}', "The end token 'end'"),
        ('{"max_new_tokens": -1}', "generation_config.json has invalid fields.*max_new_tokens"),
    ],
)
def test_a_wrong_generation_config_is_named(source, text, words):
    (source / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=words):
        open_dense(source)
