"""Attention of a single position over the cached keys and values and its own, for decoding.

On a CPU in bf16 it runs `single_query.c`, a custom op that a compiled graph can contain. The op reads only the filled
part of the cache. A graph of fixed shapes reads the whole buffer, which takes a third of a step of JetMoE-8B in 4 bits.
Shape letters are declared in `jetmoe/routing.py`; H heads, C channels per head.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from jetmoe import c_library, device

SOURCE = Path(__file__).with_suffix(".c")


class KVView(NamedTuple):
    """Keys and values that a position attends to."""

    keys: Tensor  # [B, H, size, C]
    values: Tensor  # [B, H, size, C]
    length: Tensor  # [], number of positions that are filled
    key: Tensor  # [B, H, 1, C], of the position itself
    value: Tensor  # [B, H, 1, C]


def attend(query: Tensor, known: KVView, mask: Tensor | None, scaling: float) -> Tensor:
    """Compute attention, `[B, 1, K, H, C]` -> `[B, 1, K, H, C]`.

    Args:
        mask: bool `[B or 1, 1, 1, size]`, False at masked keys.
    """
    if device.on_cpu(query) and query.dtype == known.keys.dtype == torch.bfloat16:
        return torch.ops.jetmoe.single_query_attention(query, *known, mask, scaling)
    return sums(query, known, mask, scaling)


def sums(query: Tensor, known: KVView, mask: Tensor | None, scaling: float) -> Tensor:
    """Compute `attend` with sums, which Inductor fuses into few loops.

    For a single position, the setup of an attention kernel takes longer than the attention itself.
    """
    key, value = known.key.float(), known.value.float()  # [B, H, 1, C]
    heads = query.squeeze(1).transpose(1, 2).float() * scaling  # [B, H, K, C]
    scores = (heads.unsqueeze(3) * known.keys.float().unsqueeze(2)).sum(-1)  # [B, H, K, size]
    before = torch.arange(known.keys.shape[2], device=query.device) < known.length  # [size]
    scores = scores.masked_fill(~(before if mask is None else before & mask), torch.finfo(scores.dtype).min)
    own = (heads * key).sum(-1, keepdim=True)  # [B, H, K, 1]
    highest = torch.maximum(scores.amax(-1, keepdim=True), own)
    weights, own = (scores - highest).exp(), (own - highest).exp()
    attended = (weights.unsqueeze(-1) * known.values.float().unsqueeze(2)).sum(3) + own * value  # [B, H, K, C]
    attended = attended / (weights.sum(-1, keepdim=True) + own)
    return attended.transpose(1, 2).unsqueeze(1).to(query.dtype)


def problem() -> str:
    """Return a message if the C file can't be compiled and `sums` is the fallback, else ""."""
    return _kernel()[1]


@cache
def _kernel() -> tuple[Callable[..., None] | None, str]:
    numbers = [ctypes.c_long] * 6 + [ctypes.c_float]
    return c_library.function(SOURCE, "jetmoe_attend", [ctypes.c_void_p] * 8 + numbers)


_library = torch.library.Library("jetmoe", "FRAGMENT")
_library.define(
    "single_query_attention(Tensor query, Tensor keys, Tensor values, Tensor length, Tensor key, Tensor value, "
    "Tensor? mask, float scaling) -> Tensor"
)


@torch.library.impl(_library, "single_query_attention", "CPU")
def _attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    length: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
) -> Tensor:
    function, _ = _kernel()
    if function is None:
        return sums(query, KVView(keys, values, length, key, value), mask, scaling)
    B, _, K, H, C = query.shape
    size = keys.shape[2]
    visible = torch.ones(B, size, dtype=torch.bool) if mask is None else mask.expand(B, 1, 1, size).contiguous()
    tensors = [tensor.contiguous() for tensor in (query, keys, values, key, value, visible)]
    tensors += [torch.empty(B, H, K, size + 1), torch.empty(query.shape, dtype=query.dtype)]
    function(*(tensor.data_ptr() for tensor in tensors), B, K, H, size, C, int(length), scaling)
    return tensors[-1]


@torch.library.impl(_library, "single_query_attention", "Meta")
def _attend_shape(query: Tensor, *args) -> Tensor:
    return torch.empty(query.shape, dtype=query.dtype, device="meta")
