"""`python -m studio runs ...`: manage the training runs, which the page shows too.

python -m studio runs list
python -m studio runs show 3f2a
python -m studio runs cancel 3f2a
python -m studio runs compare 3f2a 90bc --json

The first characters of an id are enough.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.cli.output import print_table

if TYPE_CHECKING:
    from studio.backend.runs.run import Run
    from studio.backend.runs.store import RunStore

runs_app = typer.Typer(no_args_is_help=True, help="List, show, cancel, compare and resume training runs.")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
RunId = Annotated[str, typer.Argument(help="A run's id or its first characters.")]


@runs_app.command("list")
def list_runs(as_json: Json = False) -> None:
    """List all runs, the latest first."""
    runs = _store().list()
    if as_json:
        print(json.dumps([run.row() for run in runs]))
    elif runs:
        print_table([["id", "name", "state", "created", "step", "eval loss", "data"], *map(_line, runs)])
    else:
        print("There are no runs yet. Start one with `python -m studio train RECIPE data=FILE`.")


@runs_app.command("show")
def show_run(run_id: RunId, as_json: Json = False) -> None:
    """Show the state, recipe and latest figures of a run."""
    from studio.backend.runs.events import figures

    run = _store().get(run_id)
    recipe = run.recipe() if run.folder_exists else None
    latest = figures(run.events.read())
    if as_json:
        print(json.dumps({"run": run.row(), "recipe": recipe and asdict(recipe), "figures": latest}))
        return
    print_table([*_facts(run), *([name, _shown(value)] for name, value in latest.items())], header=False)
    if recipe is not None:
        print("\n" + recipe.to_yaml(), end="")


@runs_app.command("cancel")
def cancel_run(run_id: RunId, as_json: Json = False) -> None:
    """Stop a run after the current step and keep its checkpoints."""
    run = _store().request_cancel(run_id)
    if as_json:
        print(json.dumps(run.row()))
    else:
        how = "was removed from the queue" if run.state == "cancelled" else "stops after the current step"
        print(f"Run {run.id[:8]} ({run.name}) {how}.")


@runs_app.command("compare")
def compare_runs(
    run_ids: Annotated[list[str], typer.Argument(help="Two or more run ids or their first characters.")],
    as_json: Json = False,
) -> None:
    """Compare runs: the settings that differ, and their latest figures."""
    from studio.backend.runs.comparison import compare

    store = _store()
    comparison = compare([store.get(run_id) for run_id in run_ids])
    if as_json:
        print(json.dumps(comparison))
        return
    print_table(_side_by_side(comparison))


def _store() -> RunStore:
    """Open the store, repair it, and mark runs with a dead process as ended."""
    from studio.backend.runs.store import RunStore

    store = RunStore()
    if notice := store.repair():
        print(notice, file=sys.stderr)
    store.reconcile()
    return store


def _line(run: Run) -> list[str]:
    state = run.state if run.folder_exists else f"{run.state}, folder deleted"
    loss, data = _shown(run.best_eval_loss), run.data_name
    return [run.id[:8], run.name, state, _when(run.created), str(run.step), loss, data]


def _facts(run: Run) -> list[list[str]]:
    folder = str(run.folder) if run.folder_exists else f"{run.folder} (deleted by hand)"
    facts = {"id": run.id, "name": run.name, "state": run.state, "message": run.message, "model": run.model}
    times = {name: _when(getattr(run, name)) for name in ("created", "started", "ended")}
    return [[name, value] for name, value in {**facts, "data": run.data, **times, "folder": folder}.items() if value]


def _side_by_side(comparison: Mapping[str, Any]) -> list[list[str]]:
    runs = comparison["runs"]
    rows = [["", *(f"{run['id'][:8]} {run['name']}" for run in runs)], ["state", *(run["state"] for run in runs)]]
    for title in ("settings", "figures"):
        rows.append([f"-- {title}" if comparison[title] else f"-- no {title} that differ", *("" for _ in runs)])
        rows += [[name, *map(_shown, values.values())] for name, values in comparison[title].items()]
    return rows


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _when(seconds: float | None) -> str:
    return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}" if seconds else ""
