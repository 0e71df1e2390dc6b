"""Which checkpoints are complete, and the order of the parameters in their optimizer states.

An optimizer stores its state by the position of a parameter. The positions follow the order of the model's modules,
which changed after version 0.1: a checkpoint names its parameters, and one without names has the order of 0.1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import nn

from studio.backend.runs.run import Run

# A file that is written last: a checkpoint without it is incomplete. Its lines are the optimizer's parameters.
WHOLE = "whole"
LAYER = re.compile(r".*\.layers\.\d+\.")
# Modules of a layer in version 0.1.
FORMERLY = ("input_layernorm", "self_attention", "post_attention_layernorm", "mlp")


def last_checkpoint(run: Run) -> Path | None:
    """Return the newest complete checkpoint."""
    whole = [file.parent for file in run.checkpoints.glob(f"checkpoint-*/{WHOLE}")]
    return max(whole, key=_step, default=None)


def last_step(run: Run) -> int:
    """Return the step of the newest complete checkpoint, 0 if there is none."""
    folder = last_checkpoint(run)
    return 0 if folder is None else _step(folder)


def complete(folder: Path, names: Sequence[str]) -> None:
    """Mark a checkpoint as complete."""
    (folder / WHOLE).write_text("\n".join(names), encoding="utf-8")


def parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the names of the optimizer's parameters, in the order of its state."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def reordered(folder: Path, state: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return a checkpoint's optimizer state in the order of the parameters `names`."""
    stored = (folder / WHOLE).read_text(encoding="utf-8").splitlines()
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
