"""Find and remove PEFT's LoRA wrappers on a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from jetmoe.low_rank import unpack


def wrappers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield PEFT's wrappers with the name of the layer that they wrap, the outermost first where they are nested."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            yield name.replace(".base_layer", ""), module


def outermost(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield PEFT's wrappers as in `wrappers`, without those that another one wraps."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer) and ".base_layer" not in name:
            yield name, module


def unwrap(model: nn.Module) -> None:
    for name, wrapper in outermost(model):
        model.set_submodule(name, wrapper.get_base_layer())
    unpack(model)
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            vars(module).pop("peft_config", None)  # otherwise PEFT assumes that the adapters still exist
