"""The memory that a run needs on a CPU, from what a forward pass saves for its backward pass.

require_memory(prepared)                         # before the first step, and before a trial of whole steps
needed, free = needed_and_free(prepared, trained, saved)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from studio.backend.system import plan
from studio.backend.training import fsdp
from studio.backend.training.prepare import Prepared
from studio.errors import StudioError

GIB = 2**30
# Per trained fp32 parameter: the weight, its gradient and AdamW's two moments.
BYTES_PER_TRAINED = 16
# Python and its libraries.
RUNTIME_BYTES = 0.7 * GIB
# Measured on the starter. glibc can't reuse the memory of the last step for all activations, so a CPU needs about twice
# as much.
WASTE = 2.0
# Of the rows that are tried: few enough not to exhaust the memory.
SAMPLE_TOKENS = 256


def require_memory(prepared: Prepared) -> None:
    """Raise StudioError if the steps of a run on a CPU need more memory than is free.

    No-op on a GPU, whose allocator raises before the machine is harmed, with FSDP, and for a probe, which has no steps.
    """
    recipe = prepared.recipe
    if recipe.method == "probe" or fsdp.is_fsdp() or prepared.base.device.type != "cpu":
        return
    trained = sum(each.numel() for each in prepared.model.parameters() if each.requires_grad)
    needed, free = needed_and_free(prepared, trained, _saved_by_batch(prepared))
    if needed > free:
        raise StudioError(
            f"A step of this run needs about {needed / GIB:.1f} GiB of memory, and {free / GIB:.1f} GiB are free: "
            "lower batch_size or max_length, or set gradient_checkpointing."
        )


def needed_and_free(prepared: Prepared, trained: int, saved: float, parts: int = 1) -> tuple[float, float]:
    """Return the bytes that a run needs, and those that are free for it, with what it has loaded already.

    Args:
        trained: number of trained parameters.
        saved: bytes that a batch saves for its backward pass.
        parts: number of devices that the parameters are sharded over.
    """
    weights = prepared.base.get_memory_footprint()
    # Besides its shards, a device holds the current layer and the next one.
    gathered = 2 * weights / len(prepared.base.model.layers) if fsdp.is_fsdp() else 0.0
    needed = (weights + BYTES_PER_TRAINED * trained) / parts + gathered + WASTE * saved + RUNTIME_BYTES
    return needed, plan.available_memory() + weights / parts + RUNTIME_BYTES


class Saved(torch.autograd.graph.saved_tensors_hooks):
    """Count the bytes that autograd saves inside the block, each shared storage once."""

    def __init__(self) -> None:
        self.storages: dict[int, int] = {}
        super().__init__(self._count, lambda tensor: tensor)

    def __enter__(self) -> Saved:  # type: ignore[override]
        super().__enter__()
        return self

    def _count(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def bytes(self) -> int:
        return sum(self.storages.values())


def _saved_by_batch(prepared: Prepared) -> float:
    """Return the bytes that the largest batch saves, from those of a few tokens."""
    recipe, model = prepared.recipe, prepared.model
    model.train()
    saved = _extrapolated(prepared)
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        # The backward pass computes one layer after another again.
        saved = _extrapolated(prepared) + saved / len(prepared.base.model.layers)
    return saved


def _extrapolated(prepared: Prepared) -> float:
    """Return the bytes that the largest batch saves, from those of one short row and of two."""
    row, tokens = _beginning(prepared)
    one, two = _saved(prepared, [row]), _saved(prepared, [row, row])
    rows = prepared.recipe.batch_size * max(_lengths(prepared)) / tokens
    return one + (rows - 1) * (two - one)


def _saved(prepared: Prepared, rows: list[Any]) -> int:
    with Saved() as saved:
        loss = prepared.loss(prepared.collate(rows))
    del loss  # with what was saved, which had to live until it was counted
    return saved.bytes


def _beginning(prepared: Prepared) -> tuple[Any, int]:
    """Return the beginning of the longest row's first example as a row, and its number of tokens."""
    lengths = _lengths(prepared)
    longest = prepared.data.train[lengths.index(max(lengths))]
    is_chat = prepared.data.labels is None
    token_ids, target = longest[0] if is_chat else longest
    token_ids = token_ids[:SAMPLE_TOKENS]
    return ([(token_ids, target[:SAMPLE_TOKENS])] if is_chat else (token_ids, target)), len(token_ids)


def _lengths(prepared: Prepared) -> list[int]:
    """Return the number of tokens of each training row."""
    if prepared.data.labels is None:
        return [sum(len(token_ids) for token_ids, _ in row) for row in prepared.data.train]
    return [len(token_ids) for token_ids, _ in prepared.data.train]
