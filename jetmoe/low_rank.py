"""LoRA adapters on linear maps: `B (A x)` is added to the product, `W + B A` is never formed.

    reason = why_not_split(module)                              # "" for plain LoRA
    layer, low_ranks = split_adapters(module, torch.bfloat16)   # the layer under PEFT's wrappers, its active adapters

Adapters are PEFT's modules and files; this module reads their factors at every forward pass. The expert index varies
slowest in `lora_A` `[E * R, in]` and fastest in `lora_B` `[out, R * E]`. Several active adapters are concatenated along
R. Shape letters are declared in `jetmoe/routing.py`; a plain linear layer is a stack of one expert, E = 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PLAIN_WRAPPERS = ("Linear", "Linear4bit", "ParamWrapper")
"""Classes of `peft.tuners.lora` whose plain form is `W x + B (A x) * scaling`."""


class AdapterError(ValueError):
    """The adapter can't be created, loaded, computed or merged. The message gives the reason and the fix."""


class LowRank(NamedTuple):
    """Factors of the active adapters of E linear maps; they add `B (A x) * scaling`."""

    A: Tensor  # [E, R, in]
    B: Tensor  # [E, out, R]
    scaling: float = 1.0

    def to(self, dtype: torch.dtype) -> LowRank:
        return LowRank(self.A.to(dtype), self.B.to(dtype), self.scaling)

    def aligned(self) -> LowRank:
        """Return the same factors as `grouped_mm` takes them: contiguous, with zeros up to a multiple of 8 ranks."""
        if missing := -self.A.shape[1] % 8:
            return LowRank(F.pad(self.A, (0, 0, 0, missing)), F.pad(self.B, (0, missing)), self.scaling)
        return LowRank(self.A.contiguous(), self.B.contiguous(), self.scaling)


def is_wrapped(module: nn.Module) -> bool:
    """Return whether a PEFT tuner wraps the module."""
    return "base_layer" in module._modules


def unwrapped(module: nn.Module) -> Any:
    while is_wrapped(module):
        module = module.base_layer  # type: ignore[assignment]
    return module


def why_not_split(module: nn.Module) -> str:
    """Return why only PEFT's own forward computes the wrapped module, or "" if it is plain LoRA without hooks."""
    layer: Any = module
    while is_wrapped(layer):
        if reason := _why_not_plain(layer):
            return reason
        layer = layer.base_layer
    return ""


def split_adapters(module: nn.Module, dtype: torch.dtype) -> tuple[Any, dict[str, LowRank]]:
    """Return the layer under PEFT's wrappers and, by the parameter that they change, its active adapters in `dtype`.

    Parameters without active adapters, and those whose adapters add nothing, are left out.
    """
    layer: Any = module
    adapters: dict[str, list[tuple[Any, str]]] = {}
    while is_wrapped(layer):
        if not (layer.disable_adapters or layer.merged):
            active = [(layer, name) for name in layer.active_adapters if name in layer.lora_A]
            adapters.setdefault(parameter_of(layer), []).extend(active)
        layer = layer.base_layer
    packed = getattr(layer, "packed_adapters", {})
    factors = {parameter: _joined(active, packed.get(parameter, {})) for parameter, active in adapters.items()}
    return layer, {parameter: one.to(dtype) for parameter, one in factors.items() if one is not None}


def parameter_of(wrapper: Any) -> str:
    """Return the name of the parameter that a wrapper adapts."""
    return getattr(wrapper, "parameter_name", "weight")


def pack(model: Any, name: str) -> None:
    """Store contiguous copies of an adapter's factors, which decoding reads faster; factors that are zero are skipped.

    The copies are used until `unpack`, so call this only for weights that don't change.
    """
    for module in model.modules():
        if is_wrapped(module) and name in getattr(module, "lora_A", {}) and not why_not_split(module):
            packed = vars(module.get_base_layer()).setdefault("packed_adapters", {})
            is_zero = not module.lora_B[name].weight.any()
            packed[parameter_of(module)] = {name: None if is_zero else _packed(_factors(module, name), model.dtype)}


def unpack(model: nn.Module) -> None:
    for module in model.modules():
        vars(module).pop("packed_adapters", None)


def _why_not_plain(wrapper: Any) -> str:
    kind = type(wrapper)
    if kind.__name__ not in PLAIN_WRAPPERS or not kind.__module__.startswith("peft.tuners.lora."):
        return f"{kind.__module__.split('.')[2]}.{kind.__name__} is not LoRA"
    if is_hooked(wrapper):
        return "its LoRA layer has hooks"
    if wrapper.disable_adapters or wrapper.merged:
        return "its merged adapters are disabled" if wrapper.disable_adapters and wrapper.merged else ""
    for name in wrapper.active_adapters:
        if name not in wrapper.lora_A:
            continue
        if name in wrapper.lora_variant:
            return f"it uses {type(wrapper.lora_variant[name]).__name__.removesuffix('Variant')}"
        if wrapper.lora_bias.get(name):
            return "it uses lora_bias"
        if wrapper.training and not isinstance(wrapper.lora_dropout[name], nn.Identity):
            return "it uses lora_dropout"
        if any(type(part[name]) is not nn.Linear or is_hooked(part[name]) for part in (wrapper.lora_A, wrapper.lora_B)):
            return "its factors are not plain linear layers"
    return ""


def is_plain_linear(module: nn.Module) -> bool:
    """Return whether the module is a product with its weight and nothing else."""
    return type(module) is nn.Linear and module.bias is None and not is_hooked(module)


def is_hooked(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def _factors(wrapper: Any, name: str) -> LowRank:
    A, B, experts = wrapper.lora_A[name].weight, wrapper.lora_B[name].weight, getattr(wrapper, "num_experts", 1)
    A = A.view(experts, -1, A.shape[-1])  # [E, R, in]
    B = B.view(B.shape[0], -1, experts).permute(2, 0, 1)  # [E, out, R]
    return LowRank(A, B, wrapper.scaling[name])


def _joined(active: list[tuple[Any, str]], packed: dict[str, LowRank | None]) -> LowRank | None:
    if not active:
        return None
    if len(active) == 1 and active[0][1] in packed:
        return packed[active[0][1]]
    return _concatenated([_factors(*adapter) for adapter in active])


def _packed(factors: LowRank, dtype: torch.dtype) -> LowRank:
    A, B, scaling = factors
    return LowRank(A.detach().to(dtype), (B.detach() * scaling).to(dtype).contiguous())


def _concatenated(factors: list[LowRank]) -> LowRank:
    if len(factors) == 1:
        return factors[0]
    A = torch.cat([one.A for one in factors], dim=1)
    return LowRank(A, torch.cat([one.B * one.scaling for one in factors], dim=2))


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Disable all adapters of the model inside the block."""
    wrappers: list[Any] = [module for module in model.modules() if is_wrapped(module)]
    before = [wrapper._disable_adapters for wrapper in wrappers]
    for wrapper in wrappers:
        wrapper._disable_adapters = True
    try:
        yield
    finally:
        for wrapper, disabled in zip(wrappers, before, strict=True):
            wrapper._disable_adapters = disabled
