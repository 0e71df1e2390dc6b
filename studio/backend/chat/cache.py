"""The static cache of one sequence."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache, StaticLayer

from jetmoe.modeling import MoeForCausalLM

SMALLEST_CACHE = 1024


class Keys(StaticLayer):
    """Cached keys and values of one layer in a buffer of fixed length.

    Eager forwards get only the used part, so they need no mask. Compiled ones get the whole buffer and a mask, so their
    shapes never change.
    """

    used = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        if torch.compiler.is_dynamo_compiling():
            return keys, values
        return keys[:, :, : self.used], values[:, :, : self.used]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (self.max_cache_len if torch.compiler.is_dynamo_compiling() else self.used), 0


def new_cache(model: MoeForCausalLM, length: int) -> Cache:
    layers: list = [Keys(max_cache_len=length) for _ in range(model.config.num_hidden_layers)]
    return Cache(layers=layers)


def cache_size(length: int, context_size: int) -> int:
    """Return the smallest cache length for `length` tokens. Lengths double from 1,024, so that few are compiled."""
    size = SMALLEST_CACHE
    while size < length:
        size *= 2
    return min(size, context_size)
