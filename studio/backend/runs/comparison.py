"""Compare training runs: the settings that differ, and their figures.

compare([one, other])["figures"]["eval_loss"]       # {run id: loss}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from studio.backend.recipe import Recipe
from studio.backend.runs.events import figures
from studio.backend.runs.run import Run
from studio.errors import StudioError


def compare(runs: Sequence[Run]) -> dict[str, Any]:
    """Return `{"runs": [{id, name, state}], "settings": {name: {id: value}}, "figures": {name: {id: value}}}`.

    Raises:
        StudioError: there are fewer than two runs, or the folder of a run is gone.
    """
    if len({run.id for run in runs}) < 2:
        raise StudioError("Name at least two different runs to compare.")
    return {
        "runs": [{"id": run.id, "name": run.name, "state": run.state} for run in runs],
        "settings": differences({run.id: run.recipe() for run in runs}),
        "figures": side_by_side({run.id: figures(run.events.read()) for run in runs}),
    }


def differences(recipes: Mapping[str, Recipe]) -> dict[str, dict[str, Any]]:
    """Return the settings that differ between the recipes, in the order of the recipe's fields."""
    every = side_by_side({run_id: asdict(recipe) for run_id, recipe in recipes.items()})
    return {name: values for name, values in every.items() if _differ([*values.values()])}


def side_by_side(values: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Turn values by run and name into values by name and run; None if a run lacks a value."""
    names = dict.fromkeys(name for of_run in values.values() for name in of_run)
    return {name: {run_id: of_run.get(name) for run_id, of_run in values.items()} for name in names}


def _differ(values: Sequence[Any]) -> bool:
    return any(value != values[0] for value in values)
