"""The memory that a run needs on a GPU, from the peak of a trial."""

from __future__ import annotations

import torch

# AdamW's two moments per trained fp32 parameter. The trial has weights, gradients and activations, but no optimizer.
BYTES_OF_MOMENTS = 8


def needed_and_free(trained: int, parts: int = 1) -> tuple[float, float]:
    """Return the bytes that a run needs on the current GPU after a trial, and those that this process can have.

    Args:
        trained: number of trained parameters.
        parts: number of devices that the parameters are sharded over.
    """
    needed = torch.cuda.max_memory_allocated() + BYTES_OF_MOMENTS * trained / parts
    return needed, unused() + torch.cuda.memory_allocated()


def unused() -> int:
    """Return the bytes that are free on the current GPU, with those that this process has cached and does not use."""
    free, _ = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
