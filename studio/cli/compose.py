"""`python -m studio compose`: join specialists, adapters of different experts, into one.

python -m studio train starter/specialist data=french.jsonl "specialist=replica 1"
python -m studio compose 3f2a 90bc --name "French and Python" --rest identity
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from studio.cli.output import print_table, progress_bar
from studio.cli.runs import Json

RunIds = Annotated[list[str], typer.Argument(help="Ids of the specialists' runs, or their first characters.")]
Rest = Annotated[str, typer.Option(help="Data file or sample whose text goes to experts that no specialist has.")]


def compose(
    runs: RunIds,
    name: Annotated[str, typer.Option(help="Name of the new adapter in lists.")] = "",
    rest: Rest = "",
    as_json: Json = False,
) -> None:
    """Join specialists into one adapter, fit the routers to their data, and print what each keeps."""
    from studio.backend.training.compose import compose as join

    with progress_bar() as progress:
        made = join(runs, name, rest=rest, progress=progress)
    if as_json:
        rows = [{**asdict(row), "kept": row.kept} for row in made.rows]
        print(json.dumps({"adapter": made.adapter.id, "name": made.adapter.title, "domains": rows}))
        return
    names = [f"to {row.run}" for row in made.rows]
    lines = [
        [row.run, f"{row.base:.3f}", f"{row.specialist:.3f}", f"{row.composed:.3f}", f"{row.kept:.0%}"]
        + [f"{share:.0%}" for share in row.shares]
        for row in made.rows
    ]
    print_table([["held-out rows of", "base loss", "specialist", "composed", "gain kept", *names], *lines])
    print(f"The adapter {made.adapter.title} is in the list of the chat.")
