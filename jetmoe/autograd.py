"""What a forward pass is part of: a graph that is traced, a transform, autocast, or plain autograd.

`is_traced` checks Dynamo, not `torch.compiler.is_compiling`. The latter is one flag for all threads, and eager steps
can run in one thread while another thread compiles.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_traced() -> bool:
    """Return whether operations are recorded, so that nothing may depend on the values of tensors."""
    return torch.compiler.is_dynamo_compiling() or is_exporting() or torch.jit.is_tracing()


def is_exporting() -> bool:
    """Return whether `torch.export` is tracing, so that lengths can be dynamic."""
    # `torch.compiler.is_exporting()` is always true inside graphs that torch 2.11 compiles.
    return torch.compiler._is_exporting_flag


def has_custom_backward(tensor: Tensor) -> bool:
    """Return whether autograd functions of this package save memory for this tensor and support what is computed.

    Otherwise, plain operations give the same result.
    """
    return tensor.requires_grad and torch.is_grad_enabled() and not is_transformed()


def is_transformed() -> bool:
    """Return whether an export, `torch.func` or forward-mode differentiation is active, which need plain operations."""
    if torch.compiler.is_dynamo_compiling():
        return False
    if is_exporting() or torch.jit.is_tracing():
        return True
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_vmapped(tensor: Tensor) -> bool:
    """Return whether the tensor stands for a batch of tensors inside `torch.func.vmap`, whose values can't be read."""
    return is_transformed() and torch._C._functorch.is_batchedtensor(tensor)


def is_autocast(tensor: Tensor) -> bool:
    """Return whether autocast is enabled on the tensor's device."""
    kind = tensor.device.type
    return kind != "meta" and torch.is_autocast_enabled(kind)


def no_autocast(tensor: Tensor) -> AbstractContextManager:
    """Disable autocast on the tensor's device."""
    return torch.autocast(tensor.device.type, enabled=False) if is_autocast(tensor) else nullcontext()


def require_first_order() -> None:
    """Raise NotImplementedError in the backward pass of a function without second derivatives."""
    if torch.is_grad_enabled():
        raise NotImplementedError(
            "Frozen experts and norms have no second derivatives (create_graph=True). Compute them with transformers' "
            "JetMoE on the same checkpoint, in a process that does not import jetmoe."
        )
