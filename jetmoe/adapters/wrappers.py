"""PEFT's LoRA wrappers on a model: find them, take them off."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel


def wrappers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """PEFT's wrappers with their names, the outermost where they are nested."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer) and ".base_layer" not in name:
            yield name, module


def unwrap(model: nn.Module) -> None:
    for name, wrapper in wrappers(model):
        layer = wrapper.get_base_layer()
        layer.low_rank, layer.low_rank_state = None, []
        model.set_submodule(name, layer)
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            vars(module).pop("peft_config", None)  # else PEFT takes the adapters for being there still
