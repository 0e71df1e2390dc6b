"""What a device computes fast, for choosing between code paths with the same result.

Tests replace these functions to run the paths of a GPU on a CPU.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

BF16_CAPABILITY = (8, 0)
"""From Ampere on, GPUs multiply bf16 and have flash attention."""
GROUPED_MAJORS = (9, 10)
"""Hopper and Blackwell for data centers. On other GPUs, `grouped_mm` copies the sizes to the host and loops."""


def on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def on_gpu(tensor: Tensor) -> bool:
    """Return whether the tensor is on a CUDA device, where reading a value waits for all kernels before."""
    return tensor.is_cuda


def has_grouped_mm(tensor: Tensor) -> bool:
    """Return whether one kernel multiplies these rows by the weights of all experts."""
    return on_gpu(tensor) and tensor.dtype == torch.bfloat16 and capability(tensor.device)[0] in GROUPED_MAJORS


def has_flash_attention(tensor: Tensor) -> bool:
    """Return whether PyTorch has flash attention for this dtype and device."""
    return on_gpu(tensor) and tensor.dtype.itemsize == 2 and capability(tensor.device) >= BF16_CAPABILITY


def sixteen_bits(device: torch.device | str) -> torch.dtype:
    """Return the 16-bit dtype that a CUDA device multiplies natively: bf16, or fp16 on GPUs before Ampere."""
    return torch.bfloat16 if capability(torch.device(device)) >= BF16_CAPABILITY else torch.float16


@torch.compiler.assume_constant_result
def capability(device: torch.device) -> tuple[int, int]:
    """Return the compute capability of a CUDA device."""
    return _capability(device)


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
