"""Training runs on a toy: start one, read what it logged, launch one in several processes."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from studio.backend.recipe import Recipe
from studio.backend.runs.run import Run
from studio.backend.training import run as train
from tests.builders.toy_folder import toy_folder, toy_rows

ROOT = Path(__file__).parents[2]


def started(settings: dict, **changes) -> Run:
    return train.start(Recipe.from_settings({**settings, **changes}))


def values(run: Run, kind: str) -> list[dict]:
    return [event.values for event in run.events.read() if event.kind == kind]


def losses(run: Run) -> list[float]:
    return [each["loss"] for each in values(run, "log")]


def held_out_losses(run: Run) -> list[float]:
    return [each["eval_loss"] for each in values(run, "eval")]


def training_settings(folder: Path) -> dict[str, Any]:
    """Of a run that takes a second, with its model and data in that folder."""
    return {
        "model": str(toy_folder(folder / "toy")),
        "precision": "fp32",
        "data": str(toy_rows(folder / "rows.jsonl")),
        "max_length": 64,
        "r": 4,
        "learning_rate": 1e-2,
        "max_steps": 6,
        "eval_steps": 2,
        "save_steps": 2,
        "sample_tokens": 4,
        "batch_size": 2,
    }


def launched(config: str, *command: str) -> str:
    """Runs a module in the processes of accelerate's configuration; what it printed."""
    launch = ["-m", "accelerate.commands.launch", "--config_file", config, "-m", *command]
    done = subprocess.run([sys.executable, *launch], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def recipe_file(settings: dict, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "recipe.yaml"
    file.write_text(Recipe.from_settings(settings).to_yaml())
    return file
