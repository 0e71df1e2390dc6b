"""Products with 4-bit experts on CUDA for a few tokens: `chosen_linear` gathers, decodes and multiplies in one kernel.

Decoding reads every chosen weight once, so its time is that of reading the codes. Weights are decoded in registers and
never exist in memory. The host never reads which experts were chosen, so a call fits into a CUDA graph. The
kernel is a custom op that Inductor inlines into a compiled graph.

Importing this module raises ImportError without Triton.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from jetmoe.autograd import is_traced
from jetmoe.nf4.parts import BLOCK, NESTED_BLOCK, Parts, nested_code, nf4_values

# Programs are small: two warps, and 64 weights per thread and step. Even 2048 outputs of two assignments then make
# several programs for each of 132 processors. A program prefetches three steps.
WARPS = 2
STEP = 4096  # weights
STAGES = 4
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def chosen_linear(rows: Tensor, experts: Tensor, parts: Parts) -> Tensor:
    """Multiply each assignment by its expert, reading only the chosen weights and without a sync.

    The first call for a shape and dtype compiles the kernel. Make one call before capturing a CUDA graph.

    Args:
        rows: fp16, bf16 or fp32 `[A, in]`, or `[A / K, in]` if K consecutive assignments share an input row.
        experts: int64 `[A]` on the device, each in `[0, E)`; not checked.
        parts: the weights `[E, out, in]` in rows, doubly quantized or not.

    Returns:
        `[A, out]` in the dtype of the rows, multiplied and summed in fp32.

    Raises:
        ValueError: the weights are in tiles or strided, the dtype of the rows is not supported, or shapes disagree.
    """
    if parts.tiled:
        raise ValueError("The CUDA kernel needs 4-bit weights in rows; these are in tiles. Call untile() first.")
    if rows.dtype not in DTYPES:
        raise ValueError(f"Rows must be fp16, bf16 or fp32; these are {rows.dtype}.")
    if experts.dim() != 1 or experts.dtype != torch.int64:
        raise ValueError(f"Experts must be int64 [A]; these are {experts.dtype} {list(experts.shape)}.")
    input_size = parts.shape[2]
    if rows.dim() != 2 or rows.shape[1] != input_size:
        raise ValueError(f"Rows must be [A, {input_size}] for these weights; these are {list(rows.shape)}.")
    if not len(rows) or len(experts) % len(rows):
        raise ValueError(f"{len(experts)} assignments cannot share {len(rows)} rows evenly.")
    if not all(part is None or part.is_contiguous() for part in parts):
        raise ValueError("The CUDA kernel needs contiguous 4-bit weights; these are strided. Make a contiguous copy.")

    # Triton launches on the current device, which can differ from that of the rows; a compiled graph sets it itself.
    with nullcontext() if is_traced() else torch.cuda.device_of(rows):
        return torch.ops.jetmoe.nf4_chosen_rows(
            rows.contiguous(),
            experts.contiguous(),
            *parts,
            nf4_values(rows.device),
            None if parts.nested_absmax is None else nested_code(rows.device),
        )


@triton_op("jetmoe::nf4_chosen_rows", mutates_args=())
def _chosen_rows(
    rows: Tensor,
    experts: Tensor,
    codes: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    nested_offset: Tensor | None,
    values: Tensor,
    nested_values: Tensor | None,
) -> Tensor:
    constants = _constants(Parts(codes, absmax, nested_absmax, nested_offset))
    result = rows.new_empty(len(experts), constants["OUT"])
    # The interpreter's functions can't be wrapped, and need not be.
    kernel = wrap_triton(_chosen_linear) if isinstance(_chosen_linear, triton.JITFunction) else _chosen_linear
    kernel[(triton.cdiv(constants["OUT"], constants["BLOCK_OUT"]), len(experts))](
        rows,
        experts,
        codes,
        absmax,
        nested_absmax,
        nested_offset,
        values,
        nested_values,
        result,
        repeat=len(experts) // len(rows),
        **constants,
        num_warps=WARPS,
    )
    return result


def _constants(parts: Parts) -> dict[str, int]:
    """Return the compile-time constants of the kernel."""
    _, output_size, input_size = parts.shape
    block_out = 16 if output_size >= 8192 else 8
    return {
        "OUT": output_size,
        "IN": input_size,
        "DOUBLE": parts.nested_absmax is not None,
        "BLOCK_OUT": block_out,
        "STEP_BLOCKS": STEP // BLOCK // block_out,
        "BLOCK": BLOCK,
        "NESTED_BLOCK": NESTED_BLOCK,
        "STAGES": STAGES,
    }


@triton.jit(do_not_specialize=["repeat"])
def _chosen_linear(
    rows,
    experts,
    codes,
    absmax,
    nested_absmax,
    nested_offset,
    values,
    nested_values,
    result,
    repeat,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    STEP_BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
    NESTED_BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Compute `BLOCK_OUT` outputs of one assignment per program."""
    PAIRS: tl.constexpr = BLOCK // 2
    BLOCKS: tl.constexpr = IN // BLOCK
    assignment = tl.program_id(1)
    # int64: all experts together may hold more than 2^31 codes.
    expert = tl.load(experts + assignment)
    codes += expert * (OUT * IN // 2)
    absmax += expert * (OUT * BLOCKS)
    rows += (assignment // repeat).to(tl.int64) * IN
    if DOUBLE:
        nested_absmax += expert * ((OUT * BLOCKS + NESTED_BLOCK - 1) // NESTED_BLOCK)
        offset = tl.load(nested_offset + expert)

    out = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    table = tl.load(values + tl.arange(0, 16))
    total = tl.zeros([BLOCK_OUT, STEP_BLOCKS], tl.float32)
    for start in tl.range(0, BLOCKS, STEP_BLOCKS, num_stages=STAGES):
        block = start + tl.arange(0, STEP_BLOCKS)
        flat = out[:, None] * BLOCKS + block[None, :]
        inside = (out < OUT)[:, None] & (block < BLOCKS)[None, :]
        scale = tl.load(absmax + flat, mask=inside, other=0)
        if DOUBLE:
            spread = tl.load(nested_absmax + flat // NESTED_BLOCK, mask=inside, other=0.0)
            scale = tl.load(nested_values + scale.to(tl.int32)) * spread + offset

        # With three dimensions, the compiler would spread threads over rows, and reads would not be coalesced.
        pair = start * PAIRS + tl.arange(0, STEP_BLOCKS * PAIRS)
        inside = (out < OUT)[:, None] & (pair < IN // 2)[None, :]
        code = tl.load(codes + out[:, None] * (IN // 2) + pair[None, :], mask=inside, other=0).to(tl.int32)
        first = _decode(table, code >> 4)
        second = _decode(table, code & 15)

        # Read contiguously and split in registers: two strided reads would take twice the transactions.
        place = start * BLOCK + tl.arange(0, STEP_BLOCKS * BLOCK)
        x = tl.load(rows + place, mask=place < IN, other=0.0).to(tl.float32)
        even, odd = tl.split(tl.reshape(x, [STEP_BLOCKS * PAIRS, 2]))

        # The weights of a block share a scale: multiply the sum instead of each weight.
        product = tl.reshape(first * even[None, :] + second * odd[None, :], [BLOCK_OUT, STEP_BLOCKS, PAIRS])
        total += tl.sum(product, axis=2) * scale

    total = tl.sum(total, axis=1).to(result.dtype.element_ty)
    tl.store(result + assignment.to(tl.int64) * OUT + out, total, mask=out < OUT)


@triton.jit
def _decode(table, code):
    # A gather keeps the table in shared memory, 16 values in 16 banks, so reads have no bank conflicts. Loads from a
    # pointer would need a 64-bit address each, and selecting among constants takes 15 instructions.
    return tl.reshape(tl.gather(table, tl.reshape(code, [code.numel]), 0), code.shape)
