"""Training runs on a toy: start one, read what it logged, launch one in several processes."""

import os
import subprocess
import sys
from pathlib import Path

from studio.backend import train
from studio.backend.recipe import Recipe
from studio.backend.runs import Run

ROOT = Path(__file__).parents[2]


def started(settings: dict, **changes) -> Run:
    return train.start(Recipe.from_settings({**settings, **changes}))


def values(run: Run, kind: str) -> list[dict]:
    return [event.values for event in run.events.read() if event.kind == kind]


def losses(run: Run) -> list[float]:
    return [each["loss"] for each in values(run, "log")]


def launched(config: str, *command: str) -> str:
    """Runs a module in the processes of accelerate's configuration; what it printed."""
    launch = ["-m", "accelerate.commands.launch", "--config_file", config, "-m", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launch], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def recipe_file(settings: dict, folder: Path) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(Recipe.from_settings(settings).to_yaml())
    return file
