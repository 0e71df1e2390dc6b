"""`python -m studio ...`: the functions of the page on the command line, with the same defaults.

    python -m studio chat --prompt "What is a mixture of experts?"
    python -m studio chat --prompt "Hi" --json
    python -m studio chat --adapter 3f2a
    python -m studio train starter/lora_experts data=FILE
    python -m studio runs list
    python -m studio classify predict --labels sport,science TEXT
    python -m studio export 3f2a --to DIR --merge
    python -m studio export 3f2a --to DIR --push NAME/REPO
    python -m studio models
    python -m studio upcycle SRC DIR --replicas 4
    python -m studio quantize SRC DIR
    python -m studio bench generate
    python -m studio user add NAME
    python -m studio doctor

Exit codes: 0 for success, 1 for a bug, 2 for an error that the user can fix (the message is on stderr).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from studio.cli.bench import bench_app
from studio.cli.chat import chat
from studio.cli.classify import classify_app
from studio.cli.compose import compose
from studio.cli.export import export
from studio.cli.output import Model, print_table, progress_bar
from studio.cli.runs import Json, runs_app
from studio.cli.train import resume, train, train_classifier
from studio.cli.user import user_app
from studio.errors import StudioError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="JetMoE Studio on the command line.")
app.add_typer(bench_app, name="bench")
app.add_typer(classify_app, name="classify")
app.add_typer(runs_app, name="runs")
app.add_typer(user_app, name="user")
app.command()(chat)
app.command()(train)
app.command()(compose)
app.command()(export)
classify_app.command("train")(train_classifier)
runs_app.command()(resume)


def main() -> None:
    """Run the command line. This is the only place where a StudioError becomes an exit code."""
    try:
        app()
    except StudioError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


@app.command()
def models(as_json: Json = False) -> None:
    """List the models, what they need and which precisions fit the main memory."""
    from studio.backend.models import catalog

    rows = catalog.rows()
    if as_json:
        print(json.dumps(rows))
        return
    lines = [
        [
            row["id"],
            row["family"],
            row["licence"],
            *(f"{row['needs_gib'][weights]:.1f} GiB" for weights in ("bf16", "nf4")),
            ", ".join(row["fits"]) or "none",
            {True: "yes", False: "no", None: "unknown"}[row["chat_template"]],
            "ready" if row["ready"] else f"downloads {row['download_gib']:.1f} GiB on first use",
        ]
        for row in rows
    ]
    print_table([["model", "family", "licence", "bf16", "nf4", "fits", "chat template", "state"], *lines])


@app.command()
def upcycle(
    source: Annotated[Path, typer.Argument(help="Folder or .gguf file of a Llama-architecture model.")],
    directory: Annotated[Path, typer.Argument(help="New or empty folder for the JetMoE model.")],
    replicas: Annotated[int, typer.Option(help="Copies of each slot that the router chooses from.")] = 4,
    fit_on: Annotated[list[Path] | None, typer.Option(help="Text file to fit the routers on; repeatable.")] = None,
) -> None:
    """Convert a dense model to JetMoE without changing its outputs."""
    from jetmoe.loading.checkpoint import CheckpointError
    from jetmoe.upcycle import upcycle as convert

    for path in [source, *(fit_on or [])]:
        if not path.exists():
            raise StudioError(f"There is no {path}. Check the spelling.")
    try:
        with progress_bar() as progress:
            convert(source, directory, replicas, texts=fit_on, progress=progress)
    except CheckpointError as error:
        raise StudioError(str(error)) from error
    except OSError as error:
        raise StudioError(f"The conversion stopped: {error}. Check the free space and the permissions.") from error
    print(directory)


@app.command()
def quantize(
    source: Annotated[Path, typer.Argument(help="Folder of a 16-bit JetMoE or OLMoE checkpoint.")],
    directory: Annotated[Path, typer.Argument(help="Folder for the 4-bit checkpoint; finished files are kept.")],
    double: Annotated[bool, typer.Option(help="Quantize the scales too, which makes the experts 8 % smaller.")] = False,
) -> None:
    """Convert a 16-bit checkpoint to 4-bit (NF4); run the command again to resume."""
    from jetmoe.loading.checkpoint import CheckpointError
    from jetmoe.loading.convert import convert
    from studio.backend.system.progress import reading

    if not source.is_dir():
        raise StudioError(f"There is no folder {source}. Check the spelling.")
    try:
        with progress_bar() as progress:
            convert(source, directory, double_quantization=double, progress=reading(progress))
    except (CheckpointError, RuntimeError) as error:
        raise StudioError(str(error)) from error
    print(directory)


@app.command()
def doctor(
    deep: Annotated[
        bool, typer.Option("--deep", help="Also load torch and the page, generate an answer and train a few steps.")
    ] = False,
    model: Model = "starter",
    host: Annotated[str | None, typer.Option(help="Address of the page, as for app.py.")] = None,
    auth: Annotated[Path | None, typer.Option(help="File of user accounts, as for app.py.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everyone use the page, as for app.py.")] = False,
    proxy: Annotated[bool, typer.Option("--proxy", help="Trust the headers of a proxy, as for app.py.")] = False,
    as_json: Json = False,
) -> None:
    """Check this machine and who can reach the page, and print a remedy for each problem."""
    from studio.backend.doctor import examine
    from studio.backend.hosting.exposure import Exposure

    report = examine(Exposure.from_environment(host, public, auth, proxy), deep, model)
    if as_json:
        print(json.dumps(report))
    else:
        for check in report["checks"]:
            print(f"{'ok  ' if check['ok'] else 'FAIL'} {check['name']}: {check['detail']}")
            if not check["ok"]:
                print(f"     {check['remedy']}")
    if not report["ok"]:
        sys.exit(2)
