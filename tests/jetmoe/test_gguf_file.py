"""GGUFs for upcycling: metadata, rotary scaling, end tokens, and what is refused without reading the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader

from jetmoe.dense import load_dense, open_dense
from jetmoe.gguf_file import read_gguf
from jetmoe.gguf_tokenizer import tokenizer_from_gguf
from jetmoe.loading.checkpoint import CheckpointError
from tests.benchmarks.upcycle_exactness import ROPE, texts
from tests.builders.gguf import KINDS, toy_llama, vocabulary, write_gguf


def written(folder: Path, kind: str = "gpt-2", metadata: dict[str, Any] | None = None, **changes) -> Path:
    words = vocabulary(kind)
    return write_gguf(folder / "toy.gguf", toy_llama(len(words.tokens), **changes), words, metadata)


@pytest.mark.parametrize("kind", KINDS)
def test_text_becomes_the_references_tokens_and_text_again(tmp_path, kind):
    words, tokenizer = vocabulary(kind), tokenizer_from_gguf(written(tmp_path, kind))
    assert tokenizer.get_vocab() == {token: index for index, token in enumerate(words.tokens)}
    for text in ["", " ", *texts(60)]:
        ids = tokenizer(text).input_ids
        assert ids == words.tokenize(text)
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("kind", ["gpt-2", "llama-bpe"])
def test_special_and_added_tokens_stay_whole(tmp_path, kind):
    words, tokenizer = vocabulary(kind), tokenizer_from_gguf(written(tmp_path, kind))
    text = "<|begin_of_text|>Hi <think> so<|eot_id|>"
    assert tokenizer(text).input_ids == words.tokenize(text)
    assert tokenizer.decode(words.tokenize(text), skip_special_tokens=True) == "Hi <think> so"


def test_bos_and_eos_are_added_where_the_file_says_so(tmp_path):
    bos = len(vocabulary("gpt-2").tokens) - 4
    said = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    tokenizer = tokenizer_from_gguf(written(tmp_path, metadata=said))
    plain = vocabulary("gpt-2").tokenize
    assert tokenizer("Hi there").input_ids == [bos, *plain("Hi there"), bos + 1]
    assert tokenizer("Hi", "there").input_ids == [bos, *plain("Hi"), bos + 1, bos, *plain("there"), bos + 1]
    silent = written(tmp_path, "llama-bpe", {"tokenizer.ggml.add_bos_token": False})
    assert tokenizer_from_gguf(silent)("Hi").input_ids == vocabulary("llama-bpe").tokenize("Hi")[1:]


def test_sentencepiece_without_a_prefix_space(tmp_path):
    tokenizer = tokenizer_from_gguf(written(tmp_path, "sentencepiece", {"tokenizer.ggml.add_space_prefix": False}))
    assert "".join(tokenizer.tokenize("the")) == "the"
    assert tokenizer.decode(tokenizer(" the").input_ids[1:]) == " the"


def test_the_chat_template_is_carried_over(tmp_path):
    tokenizer = tokenizer_from_gguf(written(tmp_path, "sentencepiece"))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "<s>Hi</s>"


def test_upper_case_suffixes_are_ggufs(tmp_path):
    path = written(tmp_path).rename(tmp_path / "MODEL.GGUF")
    assert load_dense(path).config.vocab_size == len(vocabulary("gpt-2").tokens)


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_those_of_the_model(tmp_path, tied):
    words = vocabulary("gpt-2")
    model = toy_llama(len(words.tokens), tie_word_embeddings=tied)
    found = load_dense(write_gguf(tmp_path / "toy.gguf", model, words)).state_dict()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("metadata", "rope"),
    [
        ({}, {"rope_type": "default"}),
        ({"type": "none"}, {"rope_type": "default"}),
        ({"type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 64, "finetuned": True},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        ),
    ],
)
def test_rotary_scaling_is_read(tmp_path, metadata, rope):
    path = written(tmp_path, metadata={f"llama.rope.scaling.{name}": value for name, value in metadata.items()})
    assert read_gguf(path).config.rope_parameters == {"rope_theta": 10000.0} | rope


def test_llama_3s_scaling_is_read_from_its_table(tmp_path):
    rope = ROPE["llama-bpe"]
    assert read_gguf(written(tmp_path, rope_parameters=rope)).config.rope_parameters == rope
    other = rope | {"original_max_position_embeddings": 4096}
    with pytest.raises(CheckpointError, match=r"a table \(rope_freqs.weight\) that is not Llama 3's. Use .*folder"):
        read_gguf(written(tmp_path, rope_parameters=other))


def test_end_tokens_and_sampling_are_read(tmp_path):
    """The toy's first control token starts texts, the second ends them, and the third ends turns."""
    bos = len(vocabulary("gpt-2").tokens) - 4
    assert read_gguf(written(tmp_path)).generation["eos_token_id"] == [bos + 1, bos + 2]
    found = read_gguf(written(tmp_path, metadata={"tokenizer.ggml.eot_token_id": None, "general.sampling.temp": 0.5}))
    assert found.generation["eos_token_id"] == [bos + 1, bos + 2]  # by name
    assert found.generation.items() >= {"do_sample": True, "temperature": 0.5, "bos_token_id": bos}.items()
    named = read_gguf(written(tmp_path, metadata={"tokenizer.ggml.eom_token_id": 7})).generation
    assert named["eos_token_id"] == [bos + 1, bos + 2, 7]
    assert read_gguf(written(tmp_path, metadata={"tokenizer.ggml.bos_token_id": None})).config.bos_token_id is None
    silent = written(tmp_path, "sentencepiece", {"tokenizer.ggml.eos_token_id": None})
    assert read_gguf(silent).generation["eos_token_id"] == 2


TOKENIZER = "tokenizer.ggml."


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"general.architecture": "qwen2"}, "is a 'qwen2' model; upcycling needs the architecture 'llama'"),
        ({"split.count": 3}, "one of 3 parts. Join them with `llama-gguf-split --merge`"),
        ({"llama.embedding_length": None}, "lacks llama.embedding_length"),
        ({"llama.embedding_length": 54}, r"in the shape \(705, 48\), not \(705, 54\)"),
        ({"llama.attention.head_count": 0}, "metadata of .* has invalid values: num_attention_heads is 0"),
        ({"llama.rope.dimension_count": 4}, "rotates 4 of the 8 channels of a head"),
        ({"llama.attention.sliding_window": 64}, "sets llama.attention.sliding_window, which JetMoE does not have"),
        ({"llama.expert_count": 8}, "sets llama.expert_count"),
        ({"llama.block_count": 3}, "lacks .*layers.2"),
        ({"llama.rope.scaling.type": "longrope"}, "with type 'longrope', which is not supported. Use .*folder"),
        ({"llama.rope.scaling.yarn_beta_fast": 16.0}, "llama.rope.scaling.yarn_beta_fast, which is not supported"),
        ({TOKENIZER + "model": "t5"}, "has a 't5' tokenizer; only 'gpt2' and 'llama' are supported. Use .*folder"),
        ({TOKENIZER + "model": None}, "has a None tokenizer"),
        ({TOKENIZER + "pre": "tekken"}, "pre-tokenizer 'tekken'; supported are gpt-2, smollm, default, llama-bpe"),
        ({TOKENIZER + "pre": None}, "pre-tokenizer None"),
        ({TOKENIZER + "merges": None}, "damaged tokenizer: it lacks tokens, token types or merges"),
        ({TOKENIZER + "merges": ["t h", "unseen e"]}, "the merge 'unseen e' has no token"),
        ({TOKENIZER + "token_type": [1, 1]}, "it has 705 tokens, but not as many token types"),
        ({TOKENIZER + "tokens": ["a"] * 705}, "two tokens are equal"),
        ({TOKENIZER + "bos_token_id": 705}, "bos_token_id is 705 and there are 705 tokens"),
        ({TOKENIZER + "eot_token_id": 705}, "The end token 705 .* has no row"),
        ({TOKENIZER + "model": "llama", TOKENIZER + "remove_extra_whitespaces": True}, "drops repeated spaces"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_without_reading_weights(tmp_path, metadata, words):
    path = written(tmp_path, metadata=metadata)
    cut = GGUFReader(path).data_offset
    path.write_bytes(path.read_bytes()[:cut] + bytes(path.stat().st_size - cut))
    with pytest.raises(CheckpointError, match=words):
        open_dense(path)


def test_more_tokens_than_rows_are_refused(tmp_path):
    words = vocabulary("gpt-2")
    path = write_gguf(tmp_path / "toy.gguf", toy_llama(640), words, {"llama.vocab_size": 640})
    with pytest.raises(CheckpointError, match="tokens up to id 704, but the embedding has 640 rows"):
        open_dense(path)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + b"\0" * 100, b"PK" * 100])
def test_files_that_are_no_gguf_are_refused(tmp_path, content):
    (tmp_path / "broken.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"broken\.gguf (can't be read as a GGUF|is a None model)"):
        open_dense(tmp_path / "broken.gguf")


def test_a_truncated_gguf_is_refused(tmp_path):
    path = written(tmp_path)
    whole = path.read_bytes()
    for size in (len(whole) // 4, len(whole) // 2, len(whole) - 100):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"can't be read as a GGUF.*Download it again"):
            open_dense(path)
