"""Find and remove PEFT's LoRA wrappers on a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from jetmoe.low_rank import unpack


def wrappers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the names and modules of PEFT's wrappers; only the outermost of nested ones."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer) and ".base_layer" not in name:
            yield name, module


def unwrap(model: nn.Module) -> None:
    for name, wrapper in wrappers(model):
        model.set_submodule(name, wrapper.get_base_layer())
    unpack(model)
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            vars(module).pop("peft_config", None)  # otherwise PEFT assumes that the adapters still exist
