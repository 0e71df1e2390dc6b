"""Products with 4-bit tiles on a CPU with AVX512-BF16: `chosen_linear` to decode, `sorted_linear` for many rows.

Decoding runs `cpu.c`: one call for all experts of a token takes a tenth of the time of one call per expert. If the file
can't be compiled, `c_library.py` warns, and bitsandbytes' kernel is the fallback, expert by expert. Both are custom ops
that a compiled graph can contain.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from jetmoe import c_library
from jetmoe.nf4.parts import BLOCK, TILE_ROWS, Parts, nf4_values, require_bitsandbytes

SOURCE = Path(__file__).with_suffix(".c")


def supported() -> bool:
    """Return whether this processor supports products with tiles."""
    return torch.cpu._is_avx512_bf16_supported()


def chosen_linear(rows: Tensor, experts: Tensor, tiles: Parts) -> Tensor:
    """Multiply each assignment by its expert, reading only the chosen weights.

    Args:
        rows: `[A, in]`, or `[A / K, in]` if K consecutive assignments share an input row.
        experts: int64 `[A]`.

    Returns:
        `[A, out]` in the dtype of the rows, multiplied in bf16.
    """
    return torch.ops.jetmoe.nf4_chosen_linear(rows.bfloat16(), experts, tiles.codes, tiles.absmax).to(rows.dtype)


def sorted_linear(rows: Tensor, ends: Tensor, tiles: Parts) -> Tensor:
    """Multiply rows sorted by expert, `[A, in]` -> `[A, out]`; `ends` `[E]` is the index after each expert's rows."""
    return torch.ops.jetmoe.nf4_sorted_linear(rows.bfloat16(), ends, tiles.codes, tiles.absmax).to(rows.dtype)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize bf16 weights `[out, in]` to codes `[out, in / 2]` and absolute maxima `[out, in / 64]`.

    The result is bit for bit that of bitsandbytes, about twenty times faster.
    """
    function = quantizer()
    if function is None or weight.dtype != torch.bfloat16:
        codes, absmax = require_bitsandbytes().quantize_4bit(weight.contiguous(), BLOCK, "nf4", torch.uint8)
        return codes.view(len(weight), -1), absmax.view(len(weight), -1)
    rows, columns = weight.shape
    weight, bounds = weight.contiguous(), _bounds()
    codes, absmax = torch.empty(rows, columns // 2, dtype=torch.uint8), torch.empty(rows, columns // BLOCK)
    function(*(tensor.data_ptr() for tensor in (weight, bounds, codes, absmax)), absmax.numel())
    return codes, absmax


@cache
def kernel() -> Callable[..., None] | None:
    """Return `jetmoe_nf4_chosen` of cpu.c, or None if it can't be compiled."""
    return c_library.function(SOURCE, "jetmoe_nf4_chosen", [ctypes.c_void_p] * 5 + [ctypes.c_long] * 4)[0]


@cache
def quantizer() -> Callable[..., None] | None:
    """Return `jetmoe_nf4_quantize` of cpu.c, or None if it can't be compiled."""
    return c_library.function(SOURCE, "jetmoe_nf4_quantize", [ctypes.c_void_p] * 4 + [ctypes.c_long])[0]


_library = torch.library.Library("jetmoe", "FRAGMENT")
_library.define("nf4_chosen_linear(Tensor rows, Tensor experts, Tensor codes, Tensor absmax) -> Tensor")
_library.define("nf4_sorted_linear(Tensor rows, Tensor ends, Tensor codes, Tensor absmax) -> Tensor")


@torch.library.impl(_library, "nf4_chosen_linear", "CPU")
def _chosen_linear(rows: Tensor, experts: Tensor, codes: Tensor, absmax: Tensor) -> Tensor:
    if rows.stride(0) == 0:
        rows = rows[:1]  # one token's row, repeated for each of its experts
    assignments, repeat = len(experts), len(experts) // len(rows)
    rows, experts = rows.contiguous(), experts.contiguous()
    product = kernel()
    if product is None:
        chosen = enumerate(experts.tolist())
        return torch.cat([_linear(rows[a // repeat].unsqueeze(0), codes[e], absmax[e]) for a, e in chosen])
    result = rows.new_empty(assignments, codes.shape[1] * TILE_ROWS)
    pointers = (tensor.data_ptr() for tensor in (rows, experts, codes, absmax, result))
    product(*pointers, assignments, repeat, result.shape[1], rows.shape[1])
    return result


@torch.library.impl(_library, "nf4_sorted_linear", "CPU")
def _sorted_linear(rows: Tensor, ends: Tensor, codes: Tensor, absmax: Tensor) -> Tensor:
    rows, result = rows.contiguous(), rows.new_empty(len(rows), codes.shape[1] * TILE_ROWS)
    start = 0
    for e, end in enumerate(ends.tolist()):
        if end > start:
            result[start:end] = _linear(rows[start:end], codes[e], absmax[e])
        start = end
    return result


@torch.library.impl(_library, "nf4_chosen_linear", "Meta")
def _chosen_shape(rows: Tensor, experts: Tensor, codes: Tensor, absmax: Tensor) -> Tensor:
    return rows.new_empty(len(experts), codes.shape[1] * TILE_ROWS)


@torch.library.impl(_library, "nf4_sorted_linear", "Meta")
def _sorted_shape(rows: Tensor, ends: Tensor, codes: Tensor, absmax: Tensor) -> Tensor:
    return rows.new_empty(len(rows), codes.shape[1] * TILE_ROWS)


def _linear(rows: Tensor, codes: Tensor, absmax: Tensor) -> Tensor:
    """Multiply rows by one expert: bf16 `[n, in]`, `[out / 32, in / 2, 32]` and `[in / 64, out]` -> `[n, out]`."""
    shape = [codes.shape[0] * TILE_ROWS, rows.shape[1]]
    return require_bitsandbytes().gemv_4bit(
        rows, codes.view(shape[0], -1), shape, absmax, nf4_values(codes.device), BLOCK
    )


@cache
def _bounds() -> Tensor:
    """Return the 15 midpoints between the values of NF4."""
    values = nf4_values(torch.device("cpu"))
    return (values[1:] + values[:-1]) / 2
