"""Products with 4-bit tiles on a CPU with AVX512-BF16: `chosen_linear` for a few rows, `sorted_linear` for many.

A few rows run `cpu.c`: one call for all experts of a token takes a tenth of the time of one call per expert. Many rows
are multiplied with dequantized weights, one expert at a time; for 128 rows, bitsandbytes' kernel takes 10 to 20 times
as long. If the file can't be compiled, `c_library.py` warns, and that kernel is the fallback. Both are custom ops that
a compiled graph can contain.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from jetmoe import c_library
from jetmoe.linear import padded_size
from jetmoe.nf4.parts import BLOCK, TILE_ROWS, Parts, nf4_values, require_bitsandbytes

SOURCE = Path(__file__).with_suffix(".c")
# Up to this many rows, multiplying each with the codes takes less time than dequantizing them.
FEW_ROWS = 6


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


def dequantize(tiles: Parts) -> Tensor:
    """Return the weights of tiles, bf16 `[E, out, in]`, rounded once from exact products like bitsandbytes' own."""
    function = dequantizer()
    assert function is not None
    weights = torch.empty(tiles.shape, dtype=torch.bfloat16)
    for codes, absmax, one in zip(tiles.codes, tiles.absmax, weights, strict=True):
        function(codes.data_ptr(), absmax.data_ptr(), one.data_ptr(), *one.shape)
    return weights


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
    return c_library.function(SOURCE, "jetmoe_nf4_chosen", [ctypes.c_void_p] * 5 + [ctypes.c_long] * 4)


@cache
def dequantizer() -> Callable[..., None] | None:
    """Return `jetmoe_nf4_dequantize` of cpu.c, or None if it can't be compiled."""
    return c_library.function(SOURCE, "jetmoe_nf4_dequantize", [ctypes.c_void_p] * 3 + [ctypes.c_long] * 2)


@cache
def quantizer() -> Callable[..., None] | None:
    """Return `jetmoe_nf4_quantize` of cpu.c, or None if it can't be compiled."""
    return c_library.function(SOURCE, "jetmoe_nf4_quantize", [ctypes.c_void_p] * 4 + [ctypes.c_long])


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
    tiles, count, start = Parts(codes, absmax), len(rows), 0
    rows = F.pad(rows, (0, 0, 0, padded_size(count) - count))
    result = rows.new_empty(len(rows), codes.shape[1] * TILE_ROWS)
    for e, end in enumerate(ends.tolist()):
        if end > start:
            _multiply(rows[start:], end - start, tiles.expert(e), result[start:])
        start = end
    return result[:count]


def _multiply(rows: Tensor, count: int, tiles: Parts, result: Tensor) -> None:
    """Write the products of the first `count` rows with one expert to `result`; the next expert overwrites the rest."""
    if kernel() is None:
        result[:count] = _linear(rows[:count], tiles.codes[0], tiles.absmax[0])
    elif count <= FEW_ROWS:
        result[:count] = _chosen_linear(rows[:count], torch.zeros(count, dtype=torch.int64), *tiles[:2])
    else:
        size = min(padded_size(count), len(rows))
        torch.mm(rows[:size], dequantize(tiles)[0].t(), out=result[:size])


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
