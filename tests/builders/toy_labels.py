"""Labelled texts that a toy learns in seconds, and the settings of a run that learns them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.builders.toy_folder import toy_folder

WORDS = {"ham": ("tea", "walk", "book"), "spam": ("buy", "win", "cash")}


def sentence(rng: random.Random, label: str) -> str:
    return " ".join(rng.choice(WORDS[label]) for _ in range(rng.randint(1, 5)))


def labelled_file(path: Path, label: Callable[[str, int], Any] = lambda name, i: name, rows: int = 64) -> Path:
    """`label` makes the cell of a row's name and number."""
    rng = random.Random(0)
    names = [("ham", "spam")[i % 2] for i in range(rows)]
    written = [{"text": f"{i} {sentence(rng, name)}", "label": label(name, i)} for i, name in enumerate(names)]
    path.write_text("\n".join(map(json.dumps, written)))
    return path


def classifier_settings(folder: Path, model: Path | None = None) -> dict[str, Any]:
    """Of a run that takes a second, with its data and, unless one is given, its model in that folder."""
    return {
        "model": str(model or toy_folder(folder / "toy")),
        "precision": "fp32",
        "task": "classify",
        "packing": False,
        "data": str(labelled_file(folder / "rows.jsonl")),
        "eval_share": 0.25,
        "max_length": 64,
        "r": 4,
        "learning_rate": 3e-3,
        "max_steps": 6,
        "eval_steps": 2,
        "save_steps": 2,
        "batch_size": 4,
    }
