"""`python -m studio bench`: benchmarks against peers."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from studio.cli.output import Model
from studio.cli.runs import Json

bench_app = typer.Typer(no_args_is_help=True, help="Benchmark the studio against its peers, all in one call.")
Shape = Annotated[
    str | None,
    typer.Option(help="Random weights instead of a model, shaped like jetmoe-8b or olmoe-1b-7b; NAME:2 has 2 layers."),
]


@bench_app.command("generate")
def bench_generate(
    model: Model = "starter",
    shape: Shape = None,
    weights: Annotated[list[str] | None, typer.Option(help="bf16, nf4, fp32; repeatable.")] = None,
    prompt_tokens: int = 512,
    new_tokens: int = 128,
    threads: int = 2,
    repeats: int = 3,
    busy: Annotated[int, typer.Option(help="Other processes that keep a core busy meanwhile.")] = 0,
    as_json: Json = False,
) -> None:
    """Benchmark prefill and decode of the studio, transformers and, if installed, llama.cpp and OpenVINO GenAI."""
    from studio.backend.bench.report import generate, table

    report = generate(model, weights or ["bf16", "nf4"], prompt_tokens, new_tokens, threads, repeats, shape, busy)
    print(json.dumps(report) if as_json else table(report))


@bench_app.command("viewers")
def bench_viewers(
    url: Annotated[str | None, typer.Option(help="URL of a running studio; by default, one is started.")] = None,
    count: Annotated[int, typer.Option(help="Pages that watch the newest run.")] = 100,
    seconds: int = 180,
    as_json: Json = False,
) -> None:
    """Benchmark many pages that watch one run, next to one chat and the training of that run."""
    from studio.backend.bench.report import table
    from studio.backend.bench.viewers import viewers

    report = viewers(url, count, seconds)
    print(json.dumps(report) if as_json else table(report))


@bench_app.command("load")
def bench_load(
    model: Model = "starter",
    shape: Shape = None,
    weights: Annotated[list[str] | None, typer.Option(help="bf16, nf4, fp32; repeatable.")] = None,
    threads: int = 2,
    repeats: int = 3,
    as_json: Json = False,
) -> None:
    """Benchmark loading a checkpoint: seconds and peak memory."""
    from studio.backend.bench.report import load, table

    report = load(model, weights or ["bf16", "nf4"], threads, repeats, shape)
    print(json.dumps(report) if as_json else table(report))


@bench_app.command("train")
def bench_train(
    model: Model = "starter",
    shape: Shape = None,
    weights: Annotated[list[str] | None, typer.Option(help="bf16, nf4, fp32; repeatable.")] = None,
    batch: int = 4,
    length: int = 256,
    rank: int = 16,
    threads: int = 2,
    repeats: int = 5,
    as_json: Json = False,
) -> None:
    """Benchmark training steps of a LoRA on all experts, against stock PEFT on transformers."""
    from studio.backend.bench.report import table, train

    report = train(model, weights or ["bf16"], batch, length, rank, threads, repeats, shape)
    print(json.dumps(report) if as_json else table(report))


@bench_app.command("classify")
def bench_classify(
    model: Model = "starter",
    weights: Annotated[list[str] | None, typer.Option(help="bf16, nf4, fp32; repeatable.")] = None,
    rows: int = 128,
    batch: int = 16,
    threads: int = 2,
    repeats: int = 3,
    as_json: Json = False,
) -> None:
    """Benchmark a classification head, against transformers' text-classification pipeline."""
    from studio.backend.bench.report import classify, table

    report = classify(model, weights or ["bf16"], rows, batch, threads, repeats)
    print(json.dumps(report) if as_json else table(report))
