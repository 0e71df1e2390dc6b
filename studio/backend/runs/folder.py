"""The folder of a new run, and what is known of its data when it is queued."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from studio.backend.recipe import Recipe
from studio.backend.runs.database import make_folder
from studio.backend.runs.run import CHECK, DATA
from studio.backend.system.files import atomic_write, make_private, sha256, sync, unwritable
from studio.errors import StudioError


def anchored(recipe: Recipe) -> Recipe:
    """Make the data path absolute, because a run may be resumed from another folder."""
    data = Path(recipe.data)
    return replace(recipe, data=str(data.resolve())) if data.is_file() else recipe


def fingerprint_of(recipe: Recipe) -> str:
    """Return the SHA-256 of the data file, to detect changes before the run starts; empty for other data."""
    data = Path(recipe.data)
    try:
        return sha256(data) if data.is_file() else ""
    except OSError as error:
        raise StudioError(f"{data} can't be read ({error.strerror}). Check its permissions.") from error


def make_run_folder(folder: Path, recipe: Recipe, fingerprint: str, checked: dict[str, Any] | None) -> None:
    make_folder(folder)
    try:
        make_private(folder.parent)
        atomic_write(folder / "recipe.yaml", recipe.to_yaml())
        if fingerprint:
            atomic_write(folder / DATA, json.dumps({"fingerprint": fingerprint}))
        if checked:
            atomic_write(folder / CHECK, json.dumps(checked))
        sync(folder.parent)
    except OSError as error:
        raise unwritable(folder, error) from error
