"""4-bit expert weights: an `NF4Tensor` has the shape `[E, out, in]` and stores NF4 codes and scales.

    experts.weight = nn.Parameter(quantize(weight), requires_grad=False)
    experts.weight.dequantize()                        # [E, out, in]

NF4 is the data type of QLoRA (arXiv 2305.14314, appendix E). The format is that of bitsandbytes: blocks of 64 along the
input, one absolute maximum per block, the first of two neighbours in the high half of a byte. No block spans two
experts, so each expert equals the result of `bitsandbytes.functional.quantize_4bit`. Shape letters are declared in
`jetmoe/routing.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jetmoe.nf4.parts import BLOCK, NESTED_BLOCK, Parts, empty, nested_code, prepare_tables, require_bitsandbytes


class NF4Tensor(torch.Tensor):
    """Weights `[E, out, in]` with 4-bit `parts`; `dtype` is their dtype after dequantization.

    Optimizers, PEFT, accelerate and `module.to` treat it as a parameter of that shape. `experts.py` computes with it.
    """

    parts: Parts

    @staticmethod
    def __new__(cls, parts: Parts, dtype: torch.dtype = torch.bfloat16) -> NF4Tensor:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, parts.shape, dtype=dtype, device=parts.codes.device, requires_grad=False
        )

    def __init__(self, parts: Parts, dtype: torch.dtype = torch.bfloat16) -> None:
        self.parts = parts
        if parts.codes.device.type != "meta":
            prepare_tables(parts.codes.device)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:  # type: ignore[override]
        """Return the weights `[E, out, in]`."""
        return self.parts.dequantize(dtype or self.dtype)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        layout = "in tiles" if self.parts.tiled else "doubly quantized" if self.parts.nested_absmax is not None else ""
        size = f"{self.parts.nbytes / 2**20:.1f} MiB {layout}".strip()
        return f"NF4Tensor({list(self.shape)}, {size}, device={self.device}, dtype={self.dtype})"

    def __deepcopy__(self, memo: dict) -> Tensor:
        if id(self) not in memo:
            memo[id(self)] = _rebuild(self.parts.map(torch.clone), self.dtype, isinstance(self, torch.nn.Parameter))
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return _rebuild, (self.parts, self.dtype, isinstance(self, torch.nn.Parameter))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[override]
        if func not in _SUPPORTED:
            raise NotImplementedError(
                f"4-bit weights don't support {func}. To merge an adapter, use jetmoe.adapters.merge.merge(model); to "
                "compute with the weights, call dequantize() first."
            )
        return _SUPPORTED[func](*args, **(kwargs or {}))


def quantize(weight: Tensor, double: bool = False) -> NF4Tensor:
    """Quantize weights `[E, out, in]` to 4 bits on their device, expert by expert.

    Raises:
        ValueError: in is not a multiple of 64.
    """
    from jetmoe.nf4 import cpu as nf4_cpu

    ops, on_cpu = require_bitsandbytes(), weight.device.type == "cpu"
    parts = empty(tuple(weight.shape), double, weight.device)  # type: ignore[arg-type]
    for stored, one in zip(map(parts.expert, range(len(weight))), weight, strict=True):
        made = nf4_cpu.quantize(one) if on_cpu else ops.quantize_4bit(one.contiguous(), BLOCK, "nf4", torch.uint8)
        codes, absmax = made[0], made[1].flatten()
        if stored.nested_absmax is not None and stored.nested_offset is not None:
            stored.nested_offset.copy_(absmax.mean())
            code = nested_code(absmax.device)
            absmax, spread = ops.quantize_blockwise(absmax - stored.nested_offset, code, NESTED_BLOCK)
            stored.nested_absmax.copy_(spread)
        stored.codes.copy_(codes.view(stored.codes.shape))
        stored.absmax.copy_(absmax.view(stored.absmax.shape))
    return NF4Tensor(parts, weight.dtype)


def copy_into(target: Parts, source: Parts) -> None:
    for part, value in zip(target, source, strict=True):
        if part is not None and value is not None:
            part.copy_(value)


def stored_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor as stored, including the scales of 4-bit experts and bitsandbytes matrices."""
    if isinstance(tensor, NF4Tensor):
        return tensor.parts.nbytes
    state = getattr(tensor, "quant_state", None)
    if state is None:
        return tensor.nbytes
    nested = state.state2.absmax.nbytes if state.nested else 0
    return tensor.nbytes + state.absmax.nbytes + nested


def _rebuild(parts: Parts, dtype: torch.dtype, is_parameter: bool) -> Tensor:
    tensor = NF4Tensor(Parts(*parts), dtype)
    return torch.nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor


def _to(tensor: NF4Tensor, *, dtype=None, device=None, non_blocking=False, **kwargs) -> NF4Tensor:
    # A new dtype applies after dequantization and never changes the stored data. Tiles are for CPUs.
    device = torch.device(device) if device is not None else tensor.device
    parts = tensor.parts.map(lambda part: part.to(device, non_blocking=non_blocking, copy=True))
    return NF4Tensor(parts if device.type in ("cpu", "meta") else parts.untile(), dtype or tensor.dtype)


def _copy(target: Tensor, source: Tensor, *args, **kwargs) -> Tensor:
    if not isinstance(target, NF4Tensor):
        return target.copy_(source.dequantize())
    if not isinstance(source, NF4Tensor):
        source = quantize(source.to(target.device), double=target.parts.nested_absmax is not None)
    copy_into(target.parts, source.parts.tile() if target.parts.tiled else source.parts.untile())
    return target


def _share(tensor: NF4Tensor, *args, **kwargs) -> NF4Tensor:
    return NF4Tensor(tensor.parts, tensor.dtype)


_SUPPORTED: dict[Any, Callable] = {
    torch.ops.aten.detach.default: _share,
    torch.ops.aten.alias.default: _share,
    torch.ops.aten.clone.default: lambda tensor, **kwargs: NF4Tensor(tensor.parts.map(torch.clone), tensor.dtype),
    torch.ops.aten._to_copy.default: _to,
    torch.ops.aten.copy_.default: _copy,
}
