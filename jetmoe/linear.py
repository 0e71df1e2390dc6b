"""Products with plain linear layers, with their LoRA adapters split off where a compiled graph wants loops.

Shape letters are declared in `jetmoe/routing.py`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from jetmoe.autograd import no_autocast
from jetmoe.low_rank import LowRank, is_plain_linear, split_adapters, why_not_split

# Up to this many rows, a compiled product is a generated loop instead of a call into a matrix library.
FEW_ROWS = 4


def project(linear: Any, rows: Tensor) -> Tensor:
    """Return `linear(rows)`; compiled for a few rows, it is a loop that Inductor fuses with its neighbours."""
    is_loop = torch.compiler.is_dynamo_compiling() and rows.shape[:-1].numel() <= FEW_ROWS
    return split_linear(linear, rows) if is_loop and not why_not_split(linear) else linear(rows)


def split_linear(linear: Any, rows: Tensor) -> Tensor:
    """Compute a linear layer with its adapters split off, in the dtype of the rows: `[..., in]` -> `[..., out]`."""
    layer, low_ranks = split_adapters(linear, rows.dtype)
    result = product(layer.weight.to(rows.dtype), rows) if is_plain_linear(layer) else layer(rows)
    return add_low_rank(result, low_ranks.get("weight"), rows)


def project_in_fp32(linear: Any, rows: Tensor) -> Tensor:
    """Return `linear(rows)` in fp32 (fp64 for fp64 rows), whatever the dtype of the layer and of autocast."""
    with no_autocast(rows):
        rows = wide(rows)
        if is_plain_linear(linear):
            return product(linear.weight.to(rows.dtype), rows)
        if torch.compiler.is_dynamo_compiling() and not why_not_split(linear):
            return split_linear(linear, rows)
        narrow = {name: one.float() for name, one in linear.named_parameters() if one.dtype.itemsize < 4}
        return functional_call(linear, narrow, (rows,)) if narrow else linear(rows)


def padded_size(count: int) -> int:
    """Return the number of rows to multiply on a CPU in bf16, `count` and padding.

    oneDNN compiles a kernel for each shape (a quarter of a millisecond, more than a small product takes). Padding
    leaves 8 sizes for each power of two.
    """
    step = max(16, 2 ** (count.bit_length() - 4))
    return count // -step * -step


def wide(rows: Tensor) -> Tensor:
    """Return the rows in fp32, or unchanged if they are in fp64."""
    return rows.to(wide_dtype(rows))


def wide_dtype(rows: Tensor) -> torch.dtype:
    return torch.promote_types(rows.dtype, torch.float32)


def add_low_rank(result: Tensor, low_rank: LowRank | None, rows: Tensor) -> Tensor:
    """Add the adapters of a plain linear layer to its result `[..., out]` for rows `[..., in]`."""
    if low_rank is None:
        return result
    return result + product(low_rank.B[0], product(low_rank.A[0], rows)) * low_rank.scaling


def product(weight: Tensor, rows: Tensor) -> Tensor:
    """Return `rows @ weight.T` for `[..., in]` rows and an `[out, in]` weight."""
    if torch.compiler.is_dynamo_compiling() and rows.shape[:-1].numel() <= FEW_ROWS:
        return (weight.float() * rows.float().unsqueeze(-2)).sum(-1).to(rows.dtype)
    # Flatten first: for a slice with more dimensions, matmul makes a batch and copies the weight.
    return F.linear(rows.reshape(-1, rows.shape[-1]), weight).view(*rows.shape[:-1], -1)
