"""Hot experts (ESFT): train only the experts that a data set uses most."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from jetmoe.adapters.wrappers import wrappers
from jetmoe.experts.experts import Experts
from jetmoe.families import Family


def hot_experts(load: np.ndarray, share: float) -> np.ndarray:
    """Return each router's smallest set of experts that covers a share of its routing (ESFT, arXiv 2407.01906, eq. 6).

    Args:
        load: `[L, N, E]`, each expert's share of the assignments or of another measure of use.
        share: above 0, up to 1.

    Returns:
        bool `[L, N, E]`.
    """
    load = load.astype(np.float64)
    order = np.argsort(-load, axis=-1, kind="stable")  # [L, N, E]
    falling = np.take_along_axis(load, order, axis=-1)
    before = np.cumsum(falling, axis=-1) - falling
    # Slightly below the share, so that rounding does not add another expert.
    needed = (before < share * (1 - 1e-6) * load.sum(axis=-1, keepdims=True)) & (falling > 0)
    hot = np.zeros_like(needed)
    np.put_along_axis(hot, order, needed, axis=-1)
    return hot


def mask_gradients(model: Any, hot: np.ndarray) -> None:
    """Train only the hot experts: bool `[L, N, E]`, the routers in the order of the model's layers.

    `lora_B` of the others starts at zero and gets no gradient, so their update stays exactly zero. The gradient of
    their `lora_A` is then zero too. The tensors keep PEFT's shapes.
    """
    family: Family = model.config.family
    for name, wrapper in wrappers(model):
        if not isinstance(wrapper.get_base_layer(), Experts):
            continue
        layer = int(name.partition(".layers.")[2].partition(".")[0])
        mask = torch.from_numpy(hot[layer, family.kind_index(name)])  # [E]
        wrapper.hot_share = float(mask.float().mean())
        for B in wrapper.lora_B.values():
            B.weight.register_hook(_masked_by(mask))


def _masked_by(mask: Tensor) -> Any:
    def masked(grad: Tensor) -> Tensor:
        columns = mask.to(grad.device).repeat(grad.shape[1] // len(mask))  # [R * E], the expert fastest
        return grad.masked_fill(~columns, 0)

    return masked
