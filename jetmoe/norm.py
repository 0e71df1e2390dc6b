"""The norm of all models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jetmoe import device
from jetmoe.autograd import has_custom_backward, require_first_order


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        # A GPU has a kernel for the norm and one for its backward pass, which save no copy.
        if has_custom_backward(hidden) and not device.on_gpu(hidden) and not torch.compiler.is_dynamo_compiling():
            return _RMSNorm.apply(hidden, self.weight, self.eps)
        return F.rms_norm(hidden, self.weight.shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


class _RMSNorm(torch.autograd.Function):
    """`F.rms_norm` that saves only its input for the backward pass, instead of two copies in fp32."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.eps = eps
        return F.rms_norm(hidden, weight.shape, weight, eps)

    @staticmethod
    def backward(ctx, grad: Tensor):
        require_first_order()
        hidden, weight = ctx.saved_tensors
        wide = hidden.float()
        inverse = (wide.square().mean(-1, keepdim=True) + ctx.eps).rsqrt()  # [..., 1]
        normed = wide.mul_(inverse) if wide is not hidden else wide * inverse  # [..., D]
        slopes = grad * weight.float()
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * normed).flatten(0, -2).sum(0).to(weight.dtype)  # [D]
        inward = (slopes * normed).mean(-1, keepdim=True)
        return ((slopes - normed * inward) * inverse).to(hidden.dtype), grad_weight, None
