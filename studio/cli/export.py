"""`python -m studio export`: adapters and merged models, to a folder or to the hub."""

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
    run: Annotated[str, typer.Argument(help="A run's id, or its first characters; or the folder of a PEFT adapter.")],
    to: Annotated[Path, typer.Option(help="Folder for it; made anew.")],
    merge: Annotated[bool, typer.Option("--merge", help="Add the adapter to the weights, and prove it.")] = False,
    four_bit: Annotated[bool, typer.Option("--four-bit", help="With --merge: in 4 bits instead of 16.")] = False,
    model: Annotated[str | None, typer.Option(help="The model that was trained, where no run tells.")] = None,
    push: Annotated[str | None, typer.Option(help="NAME/REPO on the hub to upload it to; private.")] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: for everybody to see.")] = False,
    as_json: Json = False,
) -> None:
    """Writes a run's adapter, or the model with it merged in, with a model card, and puts it on the hub if asked to."""
    from studio.backend.export import export as exporting

    token = _token_for(push, public)
    with progress_bar() as progress:
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
    """What can be wrong with pushing is said before a long merge."""
    from studio.backend.export import hub

    if push is None:
        if public:
            raise StudioError("Only what is pushed can be public: give --push NAME/REPO, too.")
        return ""
    hub.check_repo_id(push)
    return hub.stored_token()


def _push(folder: Path, repo_id: str, token: str, public: bool) -> str:
    from studio.backend.export import hub

    try:
        return hub.push(folder, repo_id, token, private=not public)
    except StudioError as error:
        again = f"hf upload {repo_id} {shlex.quote(str(folder))}{'' if public else ' --private'}"
        raise StudioError(f"{error} It is exported to {folder}; `{again}` pushes it, too.") from error
