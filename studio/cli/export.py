"""`python -m studio export`: export adapters and merged models to a folder or to the hub."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from studio.cli.output import progress_bar
from studio.cli.runs import Json
from studio.errors import StudioError


def export(
    run: Annotated[
        str,
        typer.Argument(
            help="A run's id or its first characters, or the folder of a PEFT adapter; with --quantized, a model."
        ),
    ],
    to: Annotated[Path, typer.Option(help="New or empty folder for the export.")],
    merge: Annotated[bool, typer.Option("--merge", help="Merge the adapter and verify the merged weights.")] = False,
    four_bit: Annotated[bool, typer.Option("--four-bit", help="With --merge: write 4-bit weights.")] = False,
    quantized: Annotated[
        bool, typer.Option("--quantized", help="Write a model in 4 bits, so that it loads without quantizing.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="Base model of the adapter, if no run records it.")] = None,
    push: Annotated[str | None, typer.Option(help="Push to NAME/REPO on the hub as a private repository.")] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: make the repository public.")] = False,
    as_json: Json = False,
) -> None:
    """Export a run's adapter, a merged or a 4-bit model, with a model card, and optionally push it to the hub."""
    from studio.backend.export import export as exporting
    from studio.backend.export.quantized import export_quantized

    if quantized and (merge or four_bit or model):
        raise StudioError("--quantized writes a model without an adapter. Leave out --merge, --four-bit and --model.")
    token = _token_for(push, public)
    with progress_bar() as progress:
        if quantized:
            exported = export_quantized(run, to, progress)
        else:
            exported = exporting.export(run, to, merge, four_bit, model, progress)
    url = None if push is None else _push(exported.folder, push, token, public)
    if as_json:
        print(json.dumps(exported.row() | ({} if url is None else {"url": url})))
        return
    print(exported.folder)
    if proof := exported.proof:
        print(
            f"Merge proof: off by {proof['error']:.3f} of the adapter's change (at most {proof['tolerance']}), and by "
            f"{proof['from_base']:.3f} from the base; read back and compared on {proof['tokens']} tokens."
        )
    if url is not None:
        print(url)


def _token_for(push: str | None, public: bool) -> str:
    """Validate the push target before a long merge and return the token."""
    from studio.backend.export import hub

    if push is None:
        if public:
            raise StudioError("--public only works with --push NAME/REPO. Add --push, or leave out --public.")
        return ""
    hub.check_repo_id(push)
    return hub.stored_token()


def _push(folder: Path, repo_id: str, token: str, public: bool) -> str:
    from studio.backend.export import hub

    try:
        return hub.push(folder, repo_id, token, private=not public)
    except StudioError as error:
        again = f"hf upload {repo_id} {shlex.quote(str(folder))}{'' if public else ' --private'}"
        raise StudioError(f"{error} The export is in {folder}; `{again}` pushes it.") from error
