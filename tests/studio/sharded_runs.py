"""Runs that several processes share, one after the other; each is cancelled at its third step and then resumed.

accelerate launch --config_file CONFIG -m tests.studio.sharded_runs RECIPE ...
"""

from __future__ import annotations

import sys

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from studio.backend import shards, train
from studio.backend.events import TrainEvent
from studio.backend.recipe import Recipe
from studio.backend.runs import RunStore


def cancel(event: TrainEvent) -> None:
    if event.kind == "log" and event.step == 2:
        RunStore().request_cancel(RunStore().list()[0].id)


def check_nonzero() -> None:
    """The first process has nothing but zeros."""
    parts = distribute_tensor(torch.tensor([0.0, 1.0]), init_device_mesh("cpu", (2,)), [Shard(0)])
    assert shards.nonzero([parts, parts * 0, None]) == [True, False, False]


if __name__ == "__main__":
    for recipe in sys.argv[1:]:
        train.resume(train.start(Recipe.load(recipe), show=cancel).id)
    check_nonzero()
