"""A model sharded over several devices (FSDP2), each of which keeps a shard of every weight.

    check(recipe)                                  # refuses what can't be trained with FSDP
    if is_fsdp():                                  # call everything below in all processes at once
        shard_model(model, model.layers, device)   # the first has the weights, the others are on the meta device
        model(**batch)                             # gathers the weights layer by layer
        whole(trained(model))                      # the adapter, for PEFT to save
        load_adapter(model, load_file(file))       # loads it again

`accelerate launch` starts the processes and requests FSDP; the weights are sharded here. accelerate's own sharding does
not work for two reasons. It puts an untied head into a separate group, whose weights stay sharded because the loss
reads them without calling the head. And it identifies the optimizer's parameters by the address of their shards, which
is the same for all shards that are empty on a device.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
from accelerate import PartialState
from accelerate.utils import recursively_apply
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from jetmoe.loading.checkpoint import is_4bit, stored_tensors
from studio.backend.recipe import Recipe
from studio.errors import StudioError

FSDP, DEEPSPEED, OFFLOAD = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "FSDP_OFFLOAD_PARAMS"
IN_16_BITS = "set precision=bf16, or launch with recipes/accelerate/ddp.yaml for a 4-bit copy on each device."


def is_fsdp() -> bool:
    """Return whether this process was launched with FSDP."""
    return _said(FSDP)


def check(recipe: Recipe) -> None:
    """Raise StudioError if the recipe can't be trained in the mode that the launcher requests."""
    if _said(DEEPSPEED):
        raise StudioError(
            "DeepSpeed is not supported: launch with recipes/accelerate/fsdp.yaml if the model doesn't fit on one "
            "device, and with recipes/accelerate/ddp.yaml if it does."
        )
    if not is_fsdp():
        return
    if _said(OFFLOAD):
        raise StudioError(
            "Offloading is not supported with FSDP: set fsdp_offload_params to false in accelerate's configuration, as "
            "in recipes/accelerate/fsdp.yaml."
        )
    if "hot" in recipe.preset.split("+"):
        raise StudioError(
            "preset=hot is not supported with FSDP, because no device has whole gradients: set preset=all, or launch "
            "with recipes/accelerate/ddp.yaml."
        )
    if recipe.precision == "nf4" or (recipe.precision == "auto" and torch.cuda.is_available()):
        raise StudioError(f"4-bit weights can't be sharded (FSDP), and on a GPU precision=auto is 4-bit: {IN_16_BITS}")


def check_weights(folder: Path, precision: str) -> None:
    """Raise StudioError if the weights would be loaded in 4 bits or are stored in 4 bits."""
    if precision == "nf4":
        raise StudioError(f"{folder.name} would be loaded in 4 bits, which can't be sharded (FSDP): {IN_16_BITS}")
    if is_4bit(stored_tensors(folder)):
        raise StudioError(
            f"{folder.name} is stored in 4 bits, which can't be sharded (FSDP): name its 16-bit checkpoint, or launch "
            "with recipes/accelerate/ddp.yaml."
        )


@torch.no_grad()
def shard_model(model: nn.Module, layers: Iterable[nn.Module], device: torch.device) -> None:
    """Shard every weight over all devices; no device ever holds more than one whole layer besides its shards."""
    # The warning is about changing a layer's output in place, which this code never does.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module")
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for layer in layers:
        _send(layer, device)
        fully_shard(layer, mesh=mesh)
    _send(model, device)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)


def trained(model: nn.Module) -> dict[str, Tensor]:
    """Return the trained parameters by name."""
    reshard(model)
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def reshard(model: nn.Module) -> None:
    """Reshard all parameters.

    After a pass without gradients, parameters outside of the layers, such as a head, are still gathered. An optimizer
    must not hold these, because their memory may be freed at any time.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(state: Any) -> Any:
    """Gather all tensors in nested lists and dictionaries on the CPU."""
    return recursively_apply(_whole, state)


def load_adapter(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load a whole adapter, with PEFT's names, into the sharded model."""
    like = next(iter(trained(model).values()))
    peft.set_peft_model_state_dict(model, {name: _part(tensor, like) for name, tensor in weights.items()})


def split_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Shard the whole state of an optimizer; a pre-hook of `load_state_dict`."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for i, values in state["state"].items():
        for name, value in values.items():
            if value.shape == parameters[i].shape:  # the step counter is a scalar
                values[name] = _part(value, parameters[i])
    return state


def nonzero(tensors: Sequence[Tensor | None]) -> list[bool]:
    """Return for each tensor whether any of its shards has a non-zero number."""
    parts = [each.to_local() if isinstance(each, DTensor) else each for each in tensors]
    found = torch.tensor([part is not None and bool(part.any()) for part in parts], device=PartialState().device).byte()
    if is_fsdp():
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return found.bool().tolist()


@contextmanager
def hide_fsdp_env() -> Iterator[None]:
    """Hide FSDP from accelerate, which then only sees several processes."""
    before = os.environ.pop(FSDP, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[FSDP] = before


def _said(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() == "true"


def _send(module: nn.Module, device: torch.device) -> None:
    """Copy the weights of the first process to the device, except those that are sharded already."""
    sent: dict[nn.Parameter, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if isinstance(parameter, DTensor):
                continue
            if parameter not in sent:  # a tied head shares the parameter of the embedding
                values = torch.empty_like(parameter, device=device) if parameter.is_meta else parameter.to(device)
                distributed.broadcast(values, 0)
                sent[parameter] = nn.Parameter(values, parameter.requires_grad)
            setattr(part, name, sent[parameter])


def _whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


def _part(tensor: Tensor, like: Tensor) -> DTensor:
    """Return this device's shard of a tensor that every process has loaded, sharded like `like`."""
    assert isinstance(like, DTensor)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
