"""Make the checkpoints, run rows in both processes at once, and compare."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from jetmoe.loading.load import load
from tests.benchmarks.compatibility.comparison import Outcome, compare
from tests.benchmarks.compatibility.names import FAMILY
from tests.benchmarks.compatibility.place import Refusal, Results, fill
from tests.benchmarks.compatibility.registry import Row
from tests.builders.four_bits import dequantized
from tests.builders.toy_folder import SIZES, toy_tokenizer
from tests.builders.toy_model import toy_model

ROOT = Path(__file__).parents[3]
LIBRARIES = ("stock", "ours")


def run(rows: Iterable[Row], libraries: tuple[str, ...] = LIBRARIES, quiet: bool = True) -> list[Outcome]:
    """Run the rows under the libraries; a process each, side by side."""
    rows = list(rows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoints = make_checkpoints(folder / "checkpoints")
        processes = [_start(library, rows, checkpoints, folder, quiet) for library in libraries]
        for library, process in zip(libraries, processes, strict=True):
            assert process.wait() == 0, f"{library}: {(folder / f'{library}.log').read_text()[-4000:]}"
        return [
            compare(row, *(_read(folder / library / str(number)) for library in LIBRARIES))
            for number, row in enumerate(rows)
        ]


def _start(library: str, rows: list[Row], checkpoints: Path, folder: Path, quiet: bool) -> subprocess.Popen[bytes]:
    (folder / library).mkdir()
    names = folder / f"{library}.txt"
    names.write_text("\n".join(row.key for row in rows))
    environment = {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / library / "compiled"),
        "HF_DATASETS_CACHE": str(folder / library / "datasets"),
        "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    command = [sys.executable, "-m", "tests.benchmarks.compatibility.worker", library, checkpoints, folder / library]
    with names.open() as listed, (folder / f"{library}.log").open("wb") as log:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=listed,
            stdout=log,
            stderr=log if quiet else None,
        )


def _read(path: Path) -> Results:
    if not path.parent.is_dir():
        return {"": Refusal("NotRun", "this library was left out", clear=False)}
    refusals = {k: Refusal(**v) for k, v in json.loads(Path(f"{path}.json").read_text())["refusals"].items()}
    file = Path(f"{path}.safetensors")
    return refusals | (load_file(file) if file.is_file() else {})


def make_checkpoints(folder: Path) -> Path:
    """Write toy models with norms and biases that are not one and zero, and their tokenizer."""
    kinds = {"tied": {}, "untied": {"tie_word_embeddings": False}, "shallow": {"num_hidden_layers": 1}}
    for kind, changes in kinds.items():
        _noisy(toy_model(family=FAMILY, **{**SIZES, "tie_word_embeddings": True, **changes})).save_pretrained(
            folder / kind
        )
        toy_tokenizer().save_pretrained(folder / kind)
    for kind in ("tied", "shallow"):
        _dequantize(folder / kind, folder / f"{kind}-dequantized")
    config = AutoConfig.from_pretrained(folder / "tied", num_labels=3, pad_token_id=256)
    _noisy(AutoModelForSequenceClassification.from_config(config)).save_pretrained(folder / "classifier")
    toy_tokenizer().save_pretrained(folder / "classifier")
    return folder


def _dequantize(source: Path, to: Path) -> None:
    four_bits = load(AutoModelForCausalLM, source, quantization="nf4", dtype=torch.float32)
    shutil.copytree(source, to, ignore=shutil.ignore_patterns("*.safetensors"))
    dequantized(four_bits).save_pretrained(to / "weights")
    shutil.move(to / "weights" / "model.safetensors", to)
    shutil.rmtree(to / "weights")


@torch.no_grad()
def _noisy(model):
    fill(model, std=0.1)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.add_(1)
    return model.eval()
