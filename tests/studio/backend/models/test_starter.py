"""The starter on the real weights: exact, tied, balanced on text it was not fitted on; and what can go wrong."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from jetmoe.dense import load_dense
from jetmoe.gguf_tokenizer import tokenizer_from_gguf
from studio.backend.models import placement, starter
from studio.backend.system.files import sha256
from studio.errors import StudioError
from tests.benchmarks.routing_table import HELD_OUT, routing_table
from tests.benchmarks.starter_exactness import (
    LARGEST_ERROR,
    PROMPTS,
    Answer,
    dense_answers,
    our_exactness,
    stock_exactness,
)


def quiet(fraction: float, text: str) -> None:
    pass


@pytest.fixture(scope="module")
def tokenizer(starter_path):
    return AutoTokenizer.from_pretrained(starter_path)


@pytest.fixture(scope="module")
def answers(dense_gguf, tokenizer) -> list[Answer]:
    """Of the dense model; `python -m tests.benchmarks.starter_exactness` has longer ones, on more prompts."""
    return dense_answers(load_dense(dense_gguf).eval(), tokenizer, PROMPTS[:3], 12)


def test_unmodified_transformers_computes_the_dense_model(starter_path, answers, tokenizer):
    error, same_tokens = stock_exactness(starter_path, answers, tokenizer.eos_token_id)
    assert error < LARGEST_ERROR and same_tokens


def test_our_model_computes_the_dense_model(starter_path, answers):
    error, same_tokens = our_exactness(starter_path, answers)
    assert error < LARGEST_ERROR and same_tokens


def test_held_out_text_loads_every_replica_and_breaks_no_slot_set(starter_path):
    """`python -m tests.benchmarks.routing_table` takes all of the text, and random tokens by the hundred thousand."""
    # What the studio computes in on this processor: an emulated bf16 takes five times as long.
    table = routing_table(starter_path, dtype=placement.default_dtype("cpu"), most=256)
    assert list(table.tokens.values()) == [256] * 7
    assert table.load.shape == (30, 2, 4)
    assert table.load.min() >= 0.15 and table.load.max() <= 0.35
    assert table.broken == 0
    assert table.nmi[7:, 1].mean() > 0.35


def test_tokenizer_is_smollm2s(tokenizer, dense_gguf):
    assert tokenizer.get_vocab() == tokenizer_from_gguf(dense_gguf).get_vocab() and len(tokenizer) == 49152
    assert tokenizer.tokenize("In 2024, 17 % more") == [
        "In",
        "Ġ",
        "2",
        "0",
        "2",
        "4",
        ",",
        "Ġ",
        "1",
        "7",
        "Ġ%",
        "Ġmore",
    ]
    for text in [*PROMPTS, "  two  spaces\n\ttab", "naïve café 😀 привет שלום", "don't we'll I'm"]:
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (tokenizer.eos_token, tokenizer.bos_token) == ("<|im_end|>", "<|im_start|>")
    assert {"<|im_start|>", "<|im_end|>", "<|endoftext|>"} <= {
        str(token) for token in tokenizer.added_tokens_decoder.values() if token.special
    }


def test_chat_template_is_chatml_with_smollm2s_system_prompt(tokenizer):
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.fixture
def empty_home(monkeypatch, tmp_path):
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path))
    return tmp_path


def fake_upcycle(source, directory, *rest, progress=quiet):
    assert source.is_file()
    directory.mkdir()
    (directory / "config.json").write_text("{}")


def test_half_a_build_is_repaired(empty_home, starter_path, monkeypatch):
    monkeypatch.setattr(starter, "dense_gguf", _fake_gguf)
    monkeypatch.setattr("jetmoe.upcycle.upcycle", _stop)
    with pytest.raises(KeyboardInterrupt):
        starter.build(quiet)
    assert not starter.ready() and not starter.path().exists()
    (empty_home / "models" / ".starter.partial").mkdir()
    monkeypatch.setattr("jetmoe.upcycle.upcycle", fake_upcycle)
    assert starter.build(quiet) == empty_home / "models" / "starter" and starter.ready()
    assert not (empty_home / "models" / ".starter.partial").exists()


def test_other_router_rows_make_it_anew(empty_home, monkeypatch):
    monkeypatch.setattr(starter, "dense_gguf", _fake_gguf)
    monkeypatch.setattr("jetmoe.upcycle.upcycle", fake_upcycle)
    folder = starter.build(quiet)
    (folder / starter.RECEIPT).write_text(json.dumps({"wheel": "x", "routers": "y"}))
    assert not starter.ready()
    starter.build(quiet)
    assert starter.ready()


def test_full_disk_is_seen_before_the_download(empty_home, monkeypatch):
    usage = namedtuple("usage", "total used free")(2**40, 2**40, 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StudioError, match=r"2\.0 GiB are needed under .*models and 0\.9 GiB are free"):
        starter.build(quiet)


def test_full_disk_while_building(empty_home, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(starter, "dense_gguf", _fake_gguf)
    monkeypatch.setattr("jetmoe.upcycle.upcycle", full)
    with pytest.raises(StudioError, match=r"can't be written to .*starter: .*No space left"):
        starter.build(quiet)
    assert not starter.path().exists()


def test_a_wheel_that_is_not_the_pinned_one(empty_home, repos):
    (empty_home / "downloads").mkdir(parents=True)
    (empty_home / "downloads" / starter.WHEEL.filename).write_bytes(b"PK")
    with pytest.raises(StudioError, match="damaged"):
        starter.build(quiet)


def test_without_the_wheel_the_hub_has_the_same_file(empty_home, repos, monkeypatch):
    monkeypatch.setattr(starter, "fetch_wheel", _no_index)
    with pytest.raises(StudioError, match=r"no answer from the index.*The Hub has no model QuantFactory"):
        starter.dense_gguf(empty_home, quiet)
    name = Path(starter.GGUF).name
    repos.repos[starter.ON_HUB.repo], repos.commits[starter.ON_HUB.repo] = {name: b"GGUF"}, starter.ON_HUB.revision
    with pytest.raises(StudioError, match=r"no answer from the index.*copy is damaged"):
        starter.dense_gguf(empty_home, quiet)
    monkeypatch.setattr(starter, "GGUF_SHA256", hashlib.sha256(b"GGUF").hexdigest())
    assert starter.dense_gguf(empty_home, quiet).read_bytes() == b"GGUF"


def test_the_pinned_file_of_the_hub_is_the_one_in_the_wheel(dense_gguf):
    assert sha256(dense_gguf) == starter.GGUF_SHA256


def test_fitting_needs_text(empty_home, tokenizer, tmp_path):
    with pytest.raises(StudioError, match=r"needs \.txt files of at least 512 tokens"):
        starter.domain_tokens(tmp_path, tokenizer, 512)
    tokens = starter.domain_tokens(HELD_OUT, tokenizer, 512)
    assert len({len(ids) for ids in tokens.values()}) == 1 and len(tokens["python"]) % 512 == 0


def _fake_gguf(folder, progress):
    (folder / "dense.gguf").write_bytes(b"GGUF")
    return folder / "dense.gguf"


def _no_index(*args, **kwargs):
    raise StudioError("There is no answer from the index.")


def _stop(*args, **kwargs):
    raise KeyboardInterrupt
