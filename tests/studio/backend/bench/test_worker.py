"""One row of a speed table, for a toy in the place of a released shape; and the bytes that its limit counts with."""

from pathlib import Path

import psutil
import pytest
import torch

from jetmoe.experts.experts import LinearExperts
from jetmoe.nf4.parts import BYTES_PER_WEIGHT
from studio.backend.bench import report as bench
from studio.backend.bench import shapes, worker
from studio.errors import StudioError
from tests.builders.toy_folder import toy_folder

TOY = {
    "model_type": "jetmoe",
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "kv_channels": 32,
    "num_experts_per_tok": 3,
    "num_local_experts": 3,
    "intermediate_size": 128,
    "tie_word_embeddings": True,
}
WORK = {"bench": "generate", "shape": "toy", "threads": 1, "repeats": 1, "prompt_tokens": 6, "new_tokens": 4}


@pytest.fixture
def work(monkeypatch):
    monkeypatch.setitem(shapes.SHAPES, "toy", TOY)
    monkeypatch.setattr(worker, "device", lambda: "cpu")
    return {**WORK, "system": "jetmoe-studio-eager"}


@pytest.mark.parametrize("weights", ["bf16", "nf4"])
def test_a_row_says_its_share_of_the_bandwidth(work, monkeypatch, weights):
    monkeypatch.setattr(worker, "copy_bandwidth", lambda: 1e6)
    row = worker.main({**work, "weights": weights})
    assert row["decode_tok_s"] > 0 and row["prefill_tok_s"] > 0 and row["note"] == "eager"
    model, _ = worker.load_model({**work, "weights": weights})
    limit = 1e6 / worker.bytes_per_token(model.config, {**work, "weights": weights})
    assert row["bandwidth"] == pytest.approx(row["decode_tok_s"] / limit, abs=0.01)


def test_a_shape_has_fewer_layers_if_asked(work):
    assert shapes.settings("toy:1") == {**TOY, "num_hidden_layers": 1}
    assert shapes.settings("toy") == TOY
    for layers in ("0", "3", "two"):
        with pytest.raises(StudioError, match=f"'{layers}' is no number of layers; toy has 2"):
            shapes.settings(f"toy:{layers}")


def test_a_row_of_a_peer(work, tmp_path, monkeypatch):
    """Its first run is told apart: 2 tokens in 4 s, then in 1 s."""
    asked, runs = [], iter([(3.0, [2.0, 2.0]), (3.0, [0.5, 0.5]), (3.0, [0.5, 0.5])])

    def prepare(*arguments):
        asked.append(arguments)
        return lambda: next(runs)

    monkeypatch.setattr(worker.starter, "path", lambda: toy_folder(tmp_path / "toy"))
    monkeypatch.setitem(worker.peers.PEERS, "OpenVINO", ("openvino_genai", prepare))
    row = worker.main({**work, "system": "OpenVINO", "path": "x.gguf", "new_tokens": 2, "repeats": 2})
    assert (row["prefill_tok_s"], row["decode_tok_s"], row["first_tok_s"], row["ttft_s"]) == (2.0, 2.0, 0.5, 3.5)
    ((path, prompt, *rest),) = asked
    assert path == "x.gguf" and len(prompt) == 6 and rest == [2, 1]


def test_busy_cores_are_busy_meanwhile(work, monkeypatch):
    here = psutil.Process()
    monkeypatch.setattr(bench, "_run", lambda *arguments: {"children": len(here.children())})
    before = len(here.children())
    report = bench.generate("starter", ["bf16"], 6, 4, 1, 1, shape="toy", busy=2)
    assert [row["children"] - before for row in report["rows"]] == [2, 2] and report["work"]["busy"] == 2
    assert len(here.children()) == before


@pytest.mark.parametrize("weights", ["bf16", "nf4"])
def test_the_limit_counts_what_a_token_needs(work, weights):
    """Every expert is chosen, so that is every matrix once, and keys and values of the middle of the answer."""
    work = {**work, "weights": weights}
    model, _ = worker.load_model(work)
    expected = 0.0
    for name, module in model.named_modules():
        if isinstance(module, LinearExperts) or name.endswith("kv_proj"):
            numbers = module.weight.numel() if weights == "bf16" or isinstance(module, LinearExperts) else 64 * 128
            expected += numbers * (BYTES_PER_WEIGHT if weights == "nf4" else 2)
        elif name.endswith(("router.layer", "lm_head")):
            expected += 2 * module.weight.numel()
    keys_and_values = 2 * 2 * 2 * 64 * (6 + 4 / 2)  # both, layers, bytes, heads x channels, tokens
    assert worker.bytes_per_token(model.config, work) == expected + keys_and_values


@pytest.mark.parametrize("weights", ["bf16", "nf4"])
@pytest.mark.parametrize("system", ["jetmoe-studio", "jetmoe-studio-checkpointed"])
def test_a_row_of_training(work, system, weights):
    """The same tokens again and again would be learned; random ones only keep the loss finite."""
    steps = {"bench": "train", "batch": 2, "length": 16, "rank": 4, "repeats": 2}
    row = worker.main({**work, **steps, "system": system, "weights": weights})
    assert row["train_tok_s"] > 0 and row["peak_gib"] > 0
    assert 0 < float(row["note"].removeprefix("loss ")) < 10


@pytest.mark.processes
def test_a_row_of_classification_beside_the_peer(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "device", lambda: "cpu")
    """Both give the same labels, as they have the same head."""
    folder = str(toy_folder(tmp_path / "toy"))
    work = {"bench": "classify", "rows": 6, "batch": 4, "threads": torch.get_num_threads(), "repeats": 1}
    ours = worker.main({**work, "system": "jetmoe-studio", "weights": "fp32", "path": folder})
    peer = bench._run("transformers", "fp32", Path(folder), work)
    assert ours["rows_s"] > 0 and peer["rows_s"] > 0 and ours["peak_gib"] > 0, peer
    assert ours["note"] == peer["note"] and ours["note"].startswith("labels [")
    assert "texts/s" in bench.table({"rows": [peer], "work": work, "machine": {}})
