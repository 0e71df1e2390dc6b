"""Place modules on devices, and run layers on the device of their weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import send_to_device
from torch import nn

from jetmoe.config import MoeConfig
from jetmoe.loading.checkpoint import GIB, CheckpointError
from jetmoe.loading.slots import Slot

CACHED_TOKENS = 1024


def layer_devices(
    model: nn.Module, slots: Sequence[Slot], device: torch.device, device_map: str | dict[str, Any] | None
) -> dict[str, torch.device]:
    """Return the device of each module; "" stands for the whole model.

    Raises:
        CheckpointError: the device does not exist, or it is too small.
    """
    if device_map == "auto":
        from accelerate import infer_auto_device_map
        from accelerate.utils import CustomDtype

        device_map = infer_auto_device_map(
            model,
            no_split_module_classes=model._no_split_modules,
            special_dtypes={slot.name: CustomDtype.INT4 for slot in slots if slot.quantized},
        )
    if isinstance(device_map, dict):
        if "disk" in device_map.values():
            raise CheckpointError("The model does not fit into the memory of GPUs and CPU together; use 4-bit weights.")
        places = {name: as_device(place) for name, place in device_map.items()}
        if len(set(places.values())) == 1:
            places = {"": next(iter(places.values()))}
    else:
        places = {"": device}
    for gpu in {place for place in places.values() if place.type == "cuda"}:
        there = [slot for slot in slots if device_of(places, slot.name) == gpu]
        needed = sum(slot.final_bytes for slot in there)
        cache = _cache_bytes(model.config) * needed // sum(slot.final_bytes for slot in slots)  # type: ignore[arg-type]
        _check_gpu(gpu, needed + cache, any(slot.quantized for slot in there))
    return places


def as_device(place: str | int | torch.device) -> torch.device:
    # torch.device(0) fails on a machine without GPUs.
    return torch.device("cuda", place) if isinstance(place, int) else torch.device(place)


def _cache_bytes(config: MoeConfig) -> int:
    """Return the size of the cached keys and values of a short chat in 16 bits."""
    channels = config.num_key_value_heads * config.head_dim  # type: ignore[operator]
    return 2 * 2 * channels * config.num_hidden_layers * min(CACHED_TOKENS, config.max_position_embeddings)


def _check_gpu(device: torch.device, needed: int, quantized: bool) -> None:
    if not torch.cuda.is_available():
        raise CheckpointError("There is no CUDA device on this machine; load on the CPU with device='cpu'.")
    free, total = torch.cuda.mem_get_info(device)
    if needed > free:
        remedy = "offload a part with device_map='auto'" if quantized else "use quantization='nf4'"
        raise CheckpointError(
            f"The weights and a short cache need {needed / GIB:.1f} GiB and the GPU has {free / GIB:.1f} of "
            f"{total / GIB:.1f} GiB free: {remedy}, or free GPU memory."
        )


def device_of(places: dict[str, torch.device], name: str) -> torch.device:
    """Return the device of the longest prefix of the name."""
    while name not in places and name:
        name = name.rpartition(".")[0]
    return places[name]


def dispatch_model(model: nn.Module, places: dict[str, torch.device]) -> nn.Module:
    """Run each part on the device of its weights; parts on the CPU are copied to the first accelerator to run."""
    if len(places) == 1:
        return model
    main = next((device for device in places.values() if device.type != "cpu"), torch.device("cpu"))
    for name, device in places.items():
        module = model.get_submodule(name)
        for part in module if isinstance(module, nn.ModuleList) else [module]:  # a list has no forward
            add_hook_to_module(part, RunOn(main if device.type == "cpu" else device))
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    if head is not None and head.weight is model.get_input_embeddings().weight:  # type: ignore[operator]
        # accelerate's map lists tied weights once, under the name of the embedding.
        add_hook_to_module(head, RunOn(main if head.weight.device.type == "cpu" else head.weight.device))
    return model


class RunOn(ModelHook):
    """accelerate hook that runs a module on a device: inputs move there, and weights for the duration of the call."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.at_home: list[tuple[nn.Module, str, nn.Parameter]] = []

    def pre_forward(self, module: nn.Module, *args, **kwargs):
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None and parameter.device != self.device:
                    self.at_home.append((part, name, parameter))
                    part._parameters[name] = _lent(parameter, self.device)
        return send_to_device(args, self.device), send_to_device(kwargs, self.device, skip_keys="past_key_values")

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        for part, name, parameter in self.at_home:
            part._parameters[name] = parameter
        self.at_home = []
        return output


def _lent(parameter: nn.Parameter, device: torch.device) -> nn.Parameter:
    if hasattr(parameter, "quant_state"):  # bitsandbytes moves the scales in place
        return copy.deepcopy(parameter).to(device)  # type: ignore[return-value]
    return nn.Parameter(parameter.to(device), requires_grad=False)
