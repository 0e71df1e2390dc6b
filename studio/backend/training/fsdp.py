"""A model spread over several devices (FSDP2), each of which keeps a part of every weight.

    check(recipe)                                 # what can't be trained so is refused
    if is_fsdp():                                   # everything below in all processes at once
        shard_model(model, model.layers, device)       # the first has the weights, the others are on the meta device
        model(**batch)                            # gathers the weights layer by layer
        whole(trained(model))                     # the adapter, for PEFT to save
        load_adapter(model, load_file(file))               # and back

`accelerate launch` starts the processes and says that shards are wanted; the weights are split here. What accelerate
itself would do is no use: it puts a head that is not tied into a group of its own, whose weights stay apart because the
loss reads them without calling the head; and it finds the optimizer's parameters again by the address of their parts,
which all that are empty on a device have in common.
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
    """Whether this process was launched to keep a part of the model."""
    return _said(FSDP)


def check(recipe: Recipe) -> None:
    """Raises StudioError: the recipe can't be trained in the way that the launcher asks for."""
    if _said(DEEPSPEED):
        raise StudioError(
            "DeepSpeed is not supported: launch with recipes/accelerate/fsdp.yaml where the model doesn't fit on one "
            "device, and with recipes/accelerate/ddp.yaml where it does."
        )
    if not is_fsdp():
        return
    if _said(OFFLOAD):
        raise StudioError(
            "Weights of a spread model (FSDP) stay on their devices: set fsdp_offload_params to false in accelerate's "
            "configuration, as in recipes/accelerate/fsdp.yaml."
        )
    if "hot" in recipe.preset.split("+"):
        raise StudioError(
            "Hot experts alone can't be trained on a spread model (FSDP), whose gradients are never whole on a device: "
            "set preset=all, or launch with recipes/accelerate/ddp.yaml."
        )
    if recipe.precision == "nf4" or (recipe.precision == "auto" and torch.cuda.is_available()):
        raise StudioError(
            f"4-bit weights can't be spread over devices (FSDP), and on a GPU precision=auto is 4-bit: {IN_16_BITS}"
        )


def check_weights(folder: Path, precision: str) -> None:
    """Raises StudioError: they would be in 4 bits, or are stored so and would stay it."""
    if precision == "nf4":
        raise StudioError(f"{folder.name} would be loaded in 4 bits, which can't be spread over devices: {IN_16_BITS}")
    if is_4bit(stored_tensors(folder)):
        raise StudioError(
            f"{folder.name} is stored in 4 bits, which can't be spread over devices (FSDP): name its 16-bit "
            "checkpoint, or launch with recipes/accelerate/ddp.yaml."
        )


@torch.no_grad()
def shard_model(model: nn.Module, layers: Iterable[nn.Module], device: torch.device) -> None:
    """Splits every weight over all devices; no device ever holds more than one whole layer beside its parts."""
    # Nothing changes in place what a layer returns.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module")
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for layer in layers:
        _send(layer, device)
        fully_shard(layer, mesh=mesh)
    _send(model, device)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that learn, by their names."""
    reshard(model)
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def reshard(model: nn.Module) -> None:
    """Only parts are parameters from now on. After a pass without gradients what is in no layer, such as a head, is
    whole: an optimizer must not take that for its own, and its memory is freed at any time."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(state: Any) -> Any:
    """Nested lists and dictionaries with all tensors put together on the CPU."""
    return recursively_apply(_whole, state)


def load_adapter(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Loads a whole adapter, in PEFT's names."""
    like = next(iter(trained(model).values()))
    peft.set_peft_model_state_dict(model, {name: _part(tensor, like) for name, tensor in weights.items()})


def split_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's whole state in parts, as a hook before it is loaded."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for i, values in state["state"].items():
        for name, value in values.items():
            if value.shape == parameters[i].shape:  # not the count of steps
                values[name] = _part(value, parameters[i])
    return state


def nonzero(tensors: Sequence[Tensor | None]) -> list[bool]:
    """Whether each has a number that is not zero, in whichever part."""
    parts = [each.to_local() if isinstance(each, DTensor) else each for each in tensors]
    found = torch.tensor([part is not None and bool(part.any()) for part in parts], device=PartialState().device).byte()
    if is_fsdp():
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return found.bool().tolist()


@contextmanager
def hide_fsdp_env() -> Iterator[None]:
    """Inside, accelerate knows of several processes but not of shards."""
    before = os.environ.pop(FSDP, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[FSDP] = before


def _said(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() == "true"


def _send(module: nn.Module, device: torch.device) -> None:
    """Gives the device the first process's weights, all but those that are split already."""
    sent: dict[nn.Parameter, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if isinstance(parameter, DTensor):
                continue
            if parameter not in sent:  # a tied head has the embedding's
                values = torch.empty_like(parameter, device=device) if parameter.is_meta else parameter.to(device)
                distributed.broadcast(values, 0)
                sent[parameter] = nn.Parameter(values, parameter.requires_grad)
            setattr(part, name, sent[parameter])


def _whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


def _part(tensor: Tensor, like: Tensor) -> DTensor:
    """This device's part of a tensor that every process has read, split as another is."""
    assert isinstance(like, DTensor)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
