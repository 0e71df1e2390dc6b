"""Runs that several processes share, one after the other; each is cancelled at its third step and then resumed.

accelerate launch --config_file CONFIG -m tests.studio.backend.training.fsdp_runs RECIPE ...
"""

from __future__ import annotations

import sys

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from studio.backend.recipe import Recipe
from studio.backend.runs.events import TrainEvent
from studio.backend.runs.store import RunStore
from studio.backend.training import fsdp
from studio.backend.training import run as train


def cancel(event: TrainEvent) -> None:
    if event.kind == "log" and event.step == 2:
        RunStore().request_cancel(RunStore().list()[0].id)


def check_nonzero() -> None:
    """The first process has nothing but zeros."""
    parts = distribute_tensor(torch.tensor([0.0, 1.0]), init_device_mesh("cpu", (2,)), [Shard(0)])
    assert fsdp.nonzero([parts, parts * 0, None]) == [True, False, False]


if __name__ == "__main__":
    for recipe in sys.argv[1:]:
        train.resume(train.start(Recipe.load(recipe), show=cancel).id)
    check_nonzero()
