"""Adapters of models with 4-bit weights under DDP."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def exclude_frozen(model: nn.Module) -> None:
    """Exclude the frozen weights from DDP, which can't send 4-bit weights.

    All processes must load the same frozen weights. Call it before `DistributedDataParallel(model)`.
    """
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)
