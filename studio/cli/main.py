"""`python -m studio ...`: everything the page does, from the command line, with the same defaults.

    python -m studio chat --prompt "What is a mixture of experts?"
    python -m studio chat --prompt "Hi" --json
    python -m studio chat --adapter 3f2a
    python -m studio classify predict --labels sport,science TEXT
    python -m studio export 3f2a --to DIR --merge
    python -m studio export 3f2a --to DIR --push NAME/REPO
    python -m studio models
    python -m studio upcycle SRC DIR --replicas 4
    python -m studio bench generate
    python -m studio user add NAME
    python -m studio doctor

Exit codes: 0 done, 2 the person can fix it (the sentence is on stderr), 1 a bug.
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
from studio.cli.export import export
from studio.cli.output import Model, progress_bar
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
app.command()(export)
classify_app.command("train")(train_classifier)
runs_app.command()(resume)


def main() -> None:
    """Runs the command line; the one place where a StudioError becomes an exit code."""
    try:
        app()
    except StudioError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


@app.command()
def models(as_json: Json = False) -> None:
    """Lists the models, where they come from and the memory they need."""
    from studio.backend.models import catalog

    rows = catalog.rows()
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        need = row["needs_gib"]
        state = "ready" if row["ready"] else "fetched on first use"
        print(f"{row['id']:24} {row['family']:8} {need['bf16']:6.1f} GiB bf16 {need['nf4']:6.1f} GiB nf4  {state}")


@app.command()
def upcycle(
    source: Annotated[Path, typer.Argument(help="Folder or .gguf file of a Llama-architecture model.")],
    directory: Annotated[Path, typer.Argument(help="Folder for the JetMoE model; made anew.")],
    replicas: Annotated[int, typer.Option(help="Copies of each slot that the routers choose between.")] = 4,
    fit_on: Annotated[list[Path] | None, typer.Option(help="Texts to fit the routers on; repeatable.")] = None,
) -> None:
    """Makes a JetMoE of a dense model, without changing what it computes."""
    from jetmoe.upcycle import fitting_tokens
    from jetmoe.upcycle import upcycle as convert

    for path in [source, *(fit_on or [])]:
        if not path.exists():
            raise StudioError(f"There is no {path}. Check the spelling.")
    if directory.exists() and any(directory.iterdir()):
        raise StudioError(f"{directory} is not empty. Name a new folder.")
    try:
        with progress_bar() as progress:
            token_ids = fitting_tokens(source, fit_on) if fit_on else None
            convert(source, directory, replicas, token_ids=token_ids, progress=progress)
    except ValueError as error:
        raise StudioError(str(error)) from error
    print(directory)


@app.command()
def quantize(
    source: Annotated[Path, typer.Argument(help="Folder of a 16-bit JetMoE checkpoint.")],
    directory: Annotated[Path, typer.Argument(help="Folder for the 4-bit one; what is there already is kept.")],
    double: Annotated[bool, typer.Option(help="Quantize the scales too: experts 8 % smaller.")] = False,
) -> None:
    """Writes the 4-bit (NF4) checkpoint of a 16-bit one; started again, it goes on where it stopped."""
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
        bool, typer.Option("--deep", help="Load torch and the page too, answer and train a little.")
    ] = False,
    model: Model = "starter",
    host: Annotated[str | None, typer.Option(help="As for app.py, as are the next three.")] = None,
    auth: Annotated[Path | None, typer.Option(help="File of those who may log in.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Everybody may use the page.")] = False,
    proxy: Annotated[bool, typer.Option("--proxy", help="A proxy stands before it.")] = False,
    as_json: Json = False,
) -> None:
    """Checks this machine, and who would reach the page, and says what to do about each finding."""
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
