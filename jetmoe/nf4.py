"""4-bit expert storage: an `NF4Tensor` reads as `[E, out, in]` weights and holds NF4 codes and scales.

    experts.weight = nn.Parameter(quantize(weight), requires_grad=False)
    experts.weight.dequantize()                        # [E, out, in]

NF4 is the data type of QLoRA (arXiv 2305.14314, appendix E), and the numbers are those of bitsandbytes: blocks of 64
along the input, one absolute maximum a block, the first of two neighbours in a byte's high half. No block straddles two
experts, so every expert alone is what `bitsandbytes.functional.quantize_4bit` makes of it. Shape letters are declared
in `jetmoe/routing.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

BLOCK = 64
BYTES_PER_WEIGHT = 0.5 + 4 / BLOCK
# Double quantization: maxima less their mean, in 8 bits, with a scale for each block of them.
NESTED_BLOCK = 256
# Rows of a tile, the layout that CPU kernels read.
TILE_ROWS = 32


class Parts(NamedTuple):
    """What 4-bit weights are made of, as plain tensors: in rows, as files hold them, or in tiles (`tile`)."""

    codes: Tensor
    """uint8 `[E, out, in / 2]`; tiles: `[E, out / 32, in / 2, 32]`."""
    absmax: Tensor
    """fp32 `[E, out, in / 64]`; doubly quantized: uint8; tiles: bf16 `[E, in / 64, out]`."""
    nested_absmax: Tensor | None = None
    """fp32 `[E, blocks / 256]` where doubly quantized."""
    nested_offset: Tensor | None = None
    """fp32 `[E]` where doubly quantized."""

    @property
    def tiled(self) -> bool:
        return self.codes.dim() == 4

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(E, out, in)`."""
        rows = self.codes.shape[1] * (TILE_ROWS if self.tiled else 1)
        return self.codes.shape[0], rows, 2 * self.codes.shape[2]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self if part is not None)

    def map(self, change: Callable[[Tensor], Tensor]) -> Parts:
        return Parts(**{name: change(part) for name, part in self._asdict().items() if part is not None})

    def expert(self, index: int) -> Parts:
        """One expert, `E` = 1; views."""
        return self.map(lambda part: part[index : index + 1])

    def scales(self) -> Tensor:
        """The absolute maximum of each block, fp32 `[E, out, in / 64]`."""
        if self.tiled:
            return self.absmax.transpose(1, 2).float().contiguous()
        if self.nested_absmax is None or self.nested_offset is None:
            return self.absmax
        spread = self.nested_absmax.repeat_interleave(NESTED_BLOCK, dim=1)[:, : self.absmax[0].numel()]  # [E, blocks]
        code = nested_code(self.absmax.device)
        flat = code[self.absmax.flatten(1).int()] * spread + self.nested_offset.unsqueeze(1)  # [E, blocks]
        return flat.view(self.absmax.shape)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weights `[E, out, in]`."""
        rows = self.untile()
        return require_bitsandbytes().dequantize_4bit(
            rows.codes.reshape(-1, 1), rows.scales().flatten(), BLOCK, "nf4", list(self.shape), dtype
        )

    def tile(self) -> Parts:
        """For CPU kernels: 32 rows side by side as bitsandbytes packs them, and scales rounded to bf16.

        A tile's bytes 2 * r and 2 * r + 1 of an input pair hold, for its first and second input, row r in their low
        halves and row r + 16 in their high ones: the order in which AVX512-BF16 multiplies pairs.

        Raises:
            ValueError: out is no multiple of 32.
        """
        if self.tiled:
            return self
        tiles = empty(self.shape, device=self.codes.device, tiled=True)
        tiles.absmax.copy_(self.scales().transpose(1, 2))
        for e, rows in enumerate(self.codes):  # one at a time: what is needed beside the result stays small
            low, high = rows.view(-1, 2, TILE_ROWS // 2, rows.shape[-1]).unbind(1)  # [out / 32, 16, in / 2]
            first = (low >> 4) | (high & 0xF0)
            second = (low & 0x0F) | (high << 4)
            tiles.codes[e] = torch.stack([first, second], dim=-1).permute(0, 2, 1, 3).flatten(2)
        return tiles

    def untile(self) -> Parts:
        """In rows; scales stay rounded."""
        if not self.tiled:
            return self
        pairs = self.codes.unflatten(3, (TILE_ROWS // 2, 2)).permute(0, 1, 3, 2, 4)  # [E, out / 32, 16, in / 2, 2]
        first, second = pairs.unbind(-1)
        low = ((first & 0x0F) << 4) | (second & 0x0F)
        high = (first & 0xF0) | (second >> 4)
        codes = torch.stack([low, high], dim=2)  # [E, out / 32, 2, 16, in / 2]
        return Parts(codes.reshape(len(codes), -1, codes.shape[-1]), self.scales())


# What stands beside a weight's name in a file, by the fields of Parts; bitsandbytes' names.
SUFFIXES = {"codes": "", "absmax": ".absmax", "nested_absmax": ".nested_absmax", "nested_offset": ".nested_offset"}


class NF4Tensor(torch.Tensor):
    """Weights `[E, out, in]` whose `parts` are in 4 bits; `dtype` is what they dequantize to.

    A parameter for optimizers, PEFT, accelerate and `module.to`, which see its shape; computing is for `experts.py`.
    """

    parts: Parts

    @staticmethod
    def __new__(cls, parts: Parts, dtype: torch.dtype = torch.bfloat16) -> NF4Tensor:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, parts.shape, dtype=dtype, device=parts.codes.device, requires_grad=False
        )

    def __init__(self, parts: Parts, dtype: torch.dtype = torch.bfloat16) -> None:
        self.parts = parts

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:  # type: ignore[override]
        """The weights `[E, out, in]`."""
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
            raise NotImplementedError(f"4-bit weights have no {func}; use their dequantize() where it must be.")
        return _SUPPORTED[func](*args, **(kwargs or {}))


def quantize(weight: Tensor, double: bool = False) -> NF4Tensor:
    """Weights `[E, out, in]` to 4 bits on their device, expert by expert.

    Raises:
        ValueError: in is no multiple of 64.
    """
    from jetmoe import nf4_cpu  # which is made of what stands here

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


def empty(
    shape: tuple[int, int, int], double: bool = False, device: torch.device | str = "cpu", tiled: bool = False
) -> Parts:
    """Unfilled parts for weights `[E, out, in]`.

    Raises:
        ValueError: in is no multiple of 64 or, in tiles, out none of 32.
    """
    experts, rows, columns = shape
    if columns % BLOCK:
        raise ValueError(f"4-bit experts need an input size that is a multiple of {BLOCK}; this one is {columns}.")
    if tiled and rows % TILE_ROWS:
        raise ValueError(f"Tiles need a multiple of {TILE_ROWS} rows; these experts have {rows}.")
    if tiled:
        return Parts(
            torch.empty(experts, rows // TILE_ROWS, columns // 2, TILE_ROWS, dtype=torch.uint8, device=device),
            torch.empty(experts, columns // BLOCK, rows, dtype=torch.bfloat16, device=device),
        )
    codes = torch.empty(experts, rows, columns // 2, dtype=torch.uint8, device=device)
    absmax = torch.empty(experts, rows, columns // BLOCK, dtype=torch.uint8 if double else torch.float32, device=device)
    if not double:
        return Parts(codes, absmax)
    spreads = -(-rows * columns // BLOCK // NESTED_BLOCK)
    return Parts(codes, absmax, torch.empty(experts, spreads, device=device), torch.empty(experts, device=device))


def stored_bytes(tensor: Tensor) -> int:
    """The bytes a tensor takes: 4-bit experts, bitsandbytes' 4-bit matrices with their scales, and plain ones."""
    if isinstance(tensor, NF4Tensor):
        return tensor.parts.nbytes
    state = getattr(tensor, "quant_state", None)
    if state is None:
        return tensor.nbytes
    nested = state.state2.absmax.nbytes if state.nested else 0
    return tensor.nbytes + state.absmax.nbytes + nested


def require_bitsandbytes() -> Any:
    """`torch.ops.bitsandbytes`.

    Raises:
        RuntimeError: the package is missing or broken; the message says what to do.
    """
    # At import it announces that an optional kernel package, to be fetched from a hub, is not there.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        import bitsandbytes  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        raise RuntimeError(
            f"4-bit weights need bitsandbytes, and importing it fails ({error}). "
            "Install it with `pip install 'bitsandbytes>=0.50.2'`, or use 16-bit weights."
        ) from error
    return torch.ops.bitsandbytes


@cache
def nested_code(device: torch.device) -> Tensor:
    """The 256 values of an 8-bit scale."""
    require_bitsandbytes()
    from bitsandbytes.functional import create_dynamic_map

    return create_dynamic_map().to(device)


def _rebuild(parts: Parts, dtype: torch.dtype, is_parameter: bool) -> Tensor:
    tensor = NF4Tensor(Parts(*parts), dtype)
    return torch.nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor


def _to(tensor: NF4Tensor, *, dtype=None, device=None, non_blocking=False, **kwargs) -> NF4Tensor:
    # A change of dtype changes what the weights dequantize to, never what is stored. Tiles are for CPUs.
    device = torch.device(device) if device is not None else tensor.device
    source = tensor.parts if device.type in ("cpu", "meta") else tensor.parts.untile()
    return NF4Tensor(
        source.map(lambda part: part.to(device, non_blocking=non_blocking, copy=True)), dtype or tensor.dtype
    )


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
