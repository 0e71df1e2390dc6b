"""`python -m studio bench ...`: benchmark the studio against its peers on the same weights and the same work.

Every system runs in a separate process (`studio/backend/bench/worker.py`), so that peak memory is measured per system
and our JetMoE never shadows transformers'.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch

from studio.backend.bench import peers, shapes
from studio.backend.models import catalog, starter
from studio.errors import StudioError

Row = dict[str, Any]
Report = dict[str, Any]
STUDIO = ["jetmoe-studio", "jetmoe-studio-unrecorded", "jetmoe-studio-eager"]
# Decoding speeds of all answers together.
SEVERAL = [f"jetmoe-studio-{count}-answers" for count in (2, 4, 8)]
# "transformers" in nf4 is loaded with bitsandbytes' load_in_4bit, which leaves the experts in 16 bits.
PEERS = ["jetmoe-studio", "transformers"]
CHECKPOINTED = "jetmoe-studio-checkpointed"
WEIGHTS = ("bf16", "nf4", "fp32")
# Each figure is the median of the repeats, except memory, which is the peak.
COLUMNS = {
    "system": "system",
    "weights": "weights",
    "prefill_tok_s": "prefill tok/s",
    "decode_tok_s": "decode tok/s",
    "first_tok_s": "first run tok/s",
    "ttft_s": "first token s",
    "train_tok_s": "train tok/s",
    "rows_s": "texts/s",
    "load_s": "load s",
    "bandwidth": "of bandwidth",
    "polls": "polls",
    "failed": "failed",
    "poll_p50_ms": "poll p50 ms",
    "poll_p95_ms": "poll p95 ms",
    "alone_ttft_s": "first token s without viewers",
    "alone_decode_tok_s": "tok/s without viewers",
    "server_mib": "server MiB",
    "grew": "grew by",
    "peak_gib": "peak GiB",
    "note": "",
}


def generate(
    model_id: str,
    weights: list[str],
    prompt_tokens: int,
    new_tokens: int,
    threads: int,
    repeats: int,
    shape: str | None = None,
    busy: int = 0,
) -> Report:
    """Benchmark one prompt and greedy decoding on a GPU if there is one; on a CPU, also of several answers at once.

    Args:
        shape: use random weights of a released model's shape (`shapes.SHAPES`) instead of a model.
        busy: number of other processes that keep a core busy meanwhile.

    Raises:
        StudioError: weights, model or shape are unknown, or a system did not finish.
    """
    work = {
        "bench": "generate",
        "model": shape or model_id,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "threads": threads,
        "repeats": repeats,
        "busy": busy,
    }
    systems = PEERS if shape else [*STUDIO, *(() if torch.cuda.is_available() else SEVERAL), "transformers"]
    runs = [(system, kind) for kind in _known(weights) for system in systems]
    if shape is None and model_id == "starter":
        runs += [(system, "q4_1") for system, (package, _) in peers.PEERS.items() if find_spec(package)]
    with _busy_cores(busy):
        return _report(work, runs, model_id, shape)


def load(model_id: str, weights: list[str], threads: int, repeats: int, shape: str | None = None) -> Report:
    """Benchmark loading, from a folder to a model that is ready for its first token; arguments as of `generate`."""
    work = {"bench": "load", "model": shape or model_id, "threads": threads, "repeats": repeats}
    runs = [(system, kind) for kind in _known(weights) for system in PEERS]
    return _report(work, runs, model_id, shape)


def train(
    model_id: str,
    weights: list[str],
    batch: int,
    length: int,
    rank: int,
    threads: int,
    repeats: int,
    shape: str | None = None,
) -> Report:
    """Benchmark optimizer steps of a LoRA on all experts; other arguments as of `generate`.

    The peer is stock PEFT with `target_parameters` on stock transformers, which does not support gradient
    checkpointing.

    Args:
        batch, length: rows of a step, and tokens of a row.
    """
    work = {"bench": "train", "model": shape or model_id, "batch": batch, "length": length, "rank": rank,
            "threads": threads, "repeats": repeats}  # fmt: skip
    runs = [(system, kind) for kind in _known(weights) for system in ["jetmoe-studio", CHECKPOINTED, "transformers"]]
    return _report(work, runs, model_id, shape)


def classify(model_id: str, weights: list[str], rows: int, batch: int, threads: int, repeats: int) -> Report:
    """Benchmark a head of four labels on the texts of a bundled sample; other arguments as of `generate`.

    The peer is transformers' pipeline on its own JetMoE.

    Args:
        rows, batch: number of texts, and texts per batch.
    """
    work = {"bench": "classify", "model": model_id, "rows": rows, "batch": batch, "threads": threads,
            "repeats": repeats}  # fmt: skip
    return _report(work, [(system, kind) for kind in _known(weights) for system in PEERS], model_id, None)


def _known(weights: list[str]) -> list[str]:
    for kind in weights:
        if kind not in WEIGHTS:
            raise StudioError(f"There are no {kind!r} weights. Choose from {', '.join(WEIGHTS)}.")
    return weights


def table(report: Report) -> str:
    """Return the report as Markdown."""
    columns = {key: title for key, title in COLUMNS.items() if any(key in row for row in report["rows"])}
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(str(row.get(key, "")) for key in columns) + " |" for row in report["rows"]]
    facts = ", ".join(f"{key} {value}" for key, value in {**report["work"], **report["machine"]}.items())
    return "\n".join(lines) + f"\n\n{facts}\n"


def _report(work: dict[str, Any], runs: list[tuple[str, str]], model_id: str, shape: str | None) -> Report:
    if shape:
        shapes.settings(shape)
        rows = [_run(system, kind, Path(), {**work, "shape": shape}) for system, kind in runs]
        return {"machine": machine(), "work": work, "rows": rows}
    path = catalog.prepare(model_id, _silent)
    gguf = starter.dense_gguf(path.parent, _silent) if any(system in peers.PEERS for system, _ in runs) else path
    rows = [_run(system, kind, gguf if system in peers.PEERS else path, work) for system, kind in runs]
    return {"machine": machine(), "work": work, "rows": rows}


def _run(system: str, dtype: str, path: Path, work: dict[str, Any]) -> Row:
    print(f"{work['bench']}: {system} in {dtype} ...", file=sys.stderr)
    arguments = json.dumps({**work, "system": system, "weights": dtype, "path": str(path)})
    environment = {**os.environ, "OMP_NUM_THREADS": str(work["threads"]), "TOKENIZERS_PARALLELISM": "false"}
    if not system.startswith("jetmoe-studio"):
        # libgomp's default, which overrides the studio's setting, so that a peer runs as it would elsewhere.
        environment["GOMP_SPINCOUNT"] = "300000"
    process = subprocess.run(
        [sys.executable, "-m", "studio.backend.bench.worker", arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if process.returncode != 0:
        why = f"did not finish: {(process.stderr.strip().splitlines() or [f'exit code {process.returncode}'])[-1]}"
        if system.startswith("jetmoe-studio"):
            raise StudioError(f"{system} in {dtype} {why}")
        return {"system": system, "weights": dtype, "note": why}
    return {"system": system, "weights": dtype, **json.loads(process.stdout.splitlines()[-1])}


@contextmanager
def _busy_cores(count: int) -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def machine() -> dict[str, Any]:
    return {
        "cpu": _cpu_name(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


_silent: Callable[[float, str], None] = lambda fraction, text: None  # noqa: E731
