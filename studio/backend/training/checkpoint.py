"""Which checkpoints are whole, and the order of the parameters in their optimizer states.

A checkpoint is whole when its marker lists all of its files and each has the size and SHA-256 in it. The marker is
written last, when the files are on the disk.

An optimizer stores its state by the position of a parameter. The positions follow the order of the model's modules,
which changed after version 0.1: a checkpoint names its parameters, and one without names has the order of 0.1.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from jetmoe.adapters.files import WEIGHTS
from studio.backend.runs.run import Run
from studio.backend.system.files import atomic_write, sha256, sync_all

# The marker: JSON with the names of the optimizer's parameters and the files. Before version 0.3, only those names.
WHOLE = "whole"
REQUIRED = (WEIGHTS, OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME)
LAYER = re.compile(r".*\.layers\.\d+\.")
# Modules of a layer in version 0.1.
FORMERLY = ("input_layernorm", "self_attention", "post_attention_layernorm", "mlp")


class Marker(NamedTuple):
    parameters: Sequence[str]
    """Names of the optimizer's parameters, in the order of its state."""
    files: dict[str, tuple[int, str]]
    """Size and SHA-256 of each file."""


def last_checkpoint(run: Run, report: Callable[[str], None] = lambda problem: None) -> Path | None:
    """Return the newest whole checkpoint. One without a marker was never complete, and is not reported.

    Args:
        report: receives what is wrong with each newer checkpoint.
    """
    for folder in reversed(_by_step(run.checkpoints)):
        if (folder / WHOLE).is_file():
            if not (problem := damage(folder)):
                return folder
            report(f"{folder.name} is damaged: {problem}")
    return None


def damage(folder: Path) -> str:
    """Return what is wrong with a checkpoint, or an empty string if it is whole."""
    try:
        files = _marker(folder).files
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return f"{WHOLE} can't be read"
    for name in (*REQUIRED, *files):
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if not (size := file.stat().st_size):
            return f"{name} is empty"
        if files and name not in files:
            return f"{name} is not in its list of files"
        if files and (size, sha256(file)) != files[name]:
            return f"{name} has changed since it was saved"
    return ""


def last_step(run: Run) -> int:
    """Return the step of the newest complete checkpoint, 0 if there is none."""
    folder = last_checkpoint(run)
    return 0 if folder is None else _step(folder)


def complete(folder: Path, names: Sequence[str]) -> None:
    """Mark a checkpoint as complete, once its files are on the disk."""
    sync_all(folder)
    files = {file.name: (file.stat().st_size, sha256(file)) for file in sorted(folder.iterdir()) if file.is_file()}
    atomic_write(folder / WHOLE, json.dumps({"parameters": list(names), "files": files}))


def rotate(checkpoints: Path, keep: int, best: str | None) -> None:
    """Delete all checkpoints but the newest complete ones and the best one. The order is that of their steps."""
    folders = _by_step(checkpoints)
    complete_ones = [folder for folder in folders if (folder / WHOLE).is_file()]
    kept = {folder.name for folder in complete_ones[-keep:]} | {Path(best or "").name}
    for folder in folders:
        if folder.name not in kept:
            (folder / WHOLE).unlink(missing_ok=True)  # first, so that a partly deleted one is not complete
            shutil.rmtree(folder, ignore_errors=True)


def _by_step(checkpoints: Path) -> list[Path]:
    folders = [folder for folder in checkpoints.glob("checkpoint-*") if folder.name.rpartition("-")[2].isdecimal()]
    return sorted(folders, key=_step)


def _marker(folder: Path) -> Marker:
    text = (folder / WHOLE).read_text(encoding="utf-8")
    if not text.startswith("{"):
        return Marker(text.splitlines(), {})
    values = json.loads(text)
    return Marker(
        values["parameters"], {name: (size, digest) for name, (size, digest) in dict(values["files"]).items()}
    )


def parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the names of the optimizer's parameters, in the order of its state."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def reordered(folder: Path, state: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return a checkpoint's optimizer state in the order of the parameters `names`."""
    stored = _marker(folder).parameters
    own: list[str] = []  # in the checkpoint's order
    for group in state["param_groups"]:
        part = names[len(own) : len(own) + len(group["params"])]
        own += part if stored else _formerly(part)
    places = {name: i for i, name in enumerate(stored or own)}
    ids = [each for group in state["param_groups"] for each in group["params"]]
    found = {i: state["state"].get(ids[places[name]]) for i, name in enumerate(names)}
    groups, start = [], 0
    for group in state["param_groups"]:
        groups.append({**group, "params": list(range(start, start + len(group["params"])))})
        start += len(group["params"])
    return {"state": {i: values for i, values in found.items() if values is not None}, "param_groups": groups}


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _formerly(names: Sequence[str]) -> list[str]:
    """Return the names in the order of version 0.1."""

    def layer(name: str) -> str:
        match = LAYER.match(name)
        return match[0] if match else ""

    def place(name: str) -> int:
        return FORMERLY.index(name.removeprefix(layer(name)).partition(".")[0]) if layer(name) else 0

    layers = groupby(names, key=layer)
    return [name for _, part in layers for name in sorted(part, key=place)]
