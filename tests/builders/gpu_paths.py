"""The paths of a GPU on CPU tensors, and what they would cost there: operations and waits for the device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from jetmoe import device
from jetmoe.nf4 import cpu as nf4_cpu

HOPPER, AMPERE, TURING = (9, 0), (8, 0), (7, 5)
# They launch no kernel.
FREE = {
    "aten::detach",
    "aten::_unsafe_view",
    "aten::empty",
    "aten::empty_like",
    "aten::new_empty",
    "aten::lift_fresh",
    "aten::promote_types",
}


def take_gpu_paths(patch: pytest.MonkeyPatch, capability: tuple[int, int] = HOPPER) -> None:
    patch.setattr(device, "on_cpu", lambda tensor: False)
    patch.setattr(device, "on_gpu", lambda tensor: True)
    patch.setattr(device, "capability", lambda device: capability)
    patch.setattr(nf4_cpu, "supported", lambda: False)  # weights stay in rows, as on a GPU


class Operations(TorchDispatchMode):
    """Counts operations that would launch a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def norm(self, hidden: Tensor, shape: Sequence[int], weight: Tensor, eps: float) -> Tensor:
        """`F.rms_norm`, which is one kernel on a GPU and several operations here."""
        return _Norm.apply(hidden, weight, eps, self.names)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().partition(".")[0]
        if not (func.is_view or name in FREE):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, eps, names):
        ctx.save_for_backward(hidden, weight)
        ctx.eps, ctx.names = eps, names
        names.append("aten::_fused_rms_norm")
        with _disable_current_modes():
            return rms_norm(hidden, weight.shape, weight, eps)

    @staticmethod
    def backward(ctx, grad):
        hidden, weight = ctx.saved_tensors
        ctx.names.append("aten::_fused_rms_norm_backward")
        with _disable_current_modes(), torch.enable_grad():
            hidden = hidden.detach().requires_grad_()
            return *torch.autograd.grad(rms_norm(hidden, weight.shape, weight, ctx.eps), hidden, grad), None, None, None


rms_norm = F.rms_norm


@contextmanager
def counted_waits() -> Iterator[list[str]]:
    """Lists the methods called inside the block that would wait for a GPU."""
    waits: list[str] = []

    def counting(name: str):
        method = getattr(torch.Tensor, name)

        def call(tensor, *args, **kwargs):
            waits.append(name)
            return method(tensor, *args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("tolist", "item", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__"):
            patch.setattr(torch.Tensor, name, counting(name))
        yield waits


def cost_of_layer(model, call) -> tuple[list[str], list[str]]:
    """Operations of the last layer, and what would wait for the GPU in it: those of a call less those without it."""
    layers = model.config.num_hidden_layers
    costs = []
    for depth in (layers - 1, layers):
        model.config.num_hidden_layers = depth
        with pytest.MonkeyPatch.context() as patch, Operations() as operations, counted_waits() as waits:
            patch.setattr(F, "rms_norm", operations.norm)
            call()
        costs.append((Counter(operations.names), Counter(waits)))
    (less, fewer), (more, several) = costs
    return sorted((more - less).elements()), sorted((several - fewer).elements())
