"""Storage of 4-bit expert weights: codes and scales in bitsandbytes' layout, in rows or in tiles."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

BLOCK = 64
BYTES_PER_WEIGHT = 0.5 + 4 / BLOCK
# Double quantization stores the maxima minus their mean in 8 bits, with one scale per block of maxima.
NESTED_BLOCK = 256
# Rows per tile, the layout for CPU kernels.
TILE_ROWS = 32


class Parts(NamedTuple):
    """4-bit weights as plain tensors, in rows (as in checkpoints) or in tiles (see `tile`)."""

    codes: Tensor
    """uint8 `[E, out, in / 2]`; tiles: `[E, out / 32, in / 2, 32]`."""
    absmax: Tensor
    """fp32 `[E, out, in / 64]`; doubly quantized: uint8; tiles: bf16 `[E, in / 64, out]`."""
    nested_absmax: Tensor | None = None
    """fp32 `[E, blocks / 256]` if doubly quantized."""
    nested_offset: Tensor | None = None
    """fp32 `[E]` if doubly quantized."""

    @property
    def tiled(self) -> bool:
        return self.codes.dim() == 4

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the weights, `(E, out, in)`."""
        rows = self.codes.shape[1] * (TILE_ROWS if self.tiled else 1)
        return self.codes.shape[0], rows, 2 * self.codes.shape[2]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self if part is not None)

    def map(self, change: Callable[[Tensor], Tensor]) -> Parts:
        return Parts(**{name: change(part) for name, part in self._asdict().items() if part is not None})

    def expert(self, index: int) -> Parts:
        """Return one expert, `E` = 1, as views."""
        return self.map(lambda part: part[index : index + 1])

    def scales(self) -> Tensor:
        """Return the absolute maximum of each block, fp32 `[E, out, in / 64]`."""
        if self.tiled:
            return self.absmax.transpose(1, 2).float().contiguous()
        if self.nested_absmax is None or self.nested_offset is None:
            return self.absmax
        spread = self.nested_absmax.repeat_interleave(NESTED_BLOCK, dim=1)[:, : self.absmax[0].numel()]  # [E, blocks]
        code = nested_code(self.absmax.device)
        flat = code[self.absmax.flatten(1).int()] * spread + self.nested_offset.unsqueeze(1)  # [E, blocks]
        return flat.view(self.absmax.shape)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """Return the weights `[E, out, in]`."""
        rows = self.untile()
        return torch.ops.bitsandbytes.dequantize_4bit(
            rows.codes.reshape(-1, 1), rows.scales().flatten(), BLOCK, "nf4", list(self.shape), dtype
        )

    def tile(self) -> Parts:
        """Convert to tiles for CPU kernels: 32 rows side by side as packed by bitsandbytes, and scales rounded to bf16.

        For each pair of inputs, byte 2 * r of a tile belongs to the first input and byte 2 * r + 1 to the second. The
        low half of a byte holds row r and the high half row r + 16, the order in which AVX512-BF16 multiplies pairs.

        Raises:
            ValueError: out is not a multiple of 32.
        """
        if self.tiled:
            return self
        tiles = empty(self.shape, device=self.codes.device, tiled=True)
        tiles.absmax.copy_(self.scales().transpose(1, 2))
        for e, rows in enumerate(self.codes):  # one expert at a time keeps temporary tensors small
            low, high = rows.view(-1, 2, TILE_ROWS // 2, rows.shape[-1]).unbind(1)  # [out / 32, 16, in / 2]
            first = (low >> 4) | (high & 0xF0)
            second = (low & 0x0F) | (high << 4)
            tiles.codes[e] = torch.stack([first, second], dim=-1).permute(0, 2, 1, 3).flatten(2)
        return tiles

    def untile(self) -> Parts:
        """Convert to rows; scales stay rounded to bf16."""
        if not self.tiled:
            return self
        pairs = self.codes.unflatten(3, (TILE_ROWS // 2, 2)).permute(0, 1, 3, 2, 4)  # [E, out / 32, 16, in / 2, 2]
        first, second = pairs.unbind(-1)
        low = ((first & 0x0F) << 4) | (second & 0x0F)
        high = (first & 0xF0) | (second >> 4)
        codes = torch.stack([low, high], dim=2)  # [E, out / 32, 2, 16, in / 2]
        return Parts(codes.reshape(len(codes), -1, codes.shape[-1]), self.scales())


# Suffixes of a weight's name in a checkpoint, by the fields of Parts; bitsandbytes' names.
SUFFIXES = {"codes": "", "absmax": ".absmax", "nested_absmax": ".nested_absmax", "nested_offset": ".nested_offset"}


def empty(
    shape: tuple[int, int, int], double: bool = False, device: torch.device | str = "cpu", tiled: bool = False
) -> Parts:
    """Return uninitialized parts for weights `[E, out, in]`.

    Raises:
        ValueError: in is not a multiple of 64 or, for tiles, out is not a multiple of 32.
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


def require_bitsandbytes() -> Any:
    """Import bitsandbytes and return `torch.ops.bitsandbytes`. 4-bit weights call it when they are created.

    Raises:
        RuntimeError: the package is missing or broken; the message gives the fix.
    """
    # On import, bitsandbytes logs that an optional kernel package from the hub is missing.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        import bitsandbytes  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        raise RuntimeError(
            f"4-bit weights need bitsandbytes, and importing it fails ({error}). "
            "Install it with `pip install 'bitsandbytes>=0.50.2'`, or use 16-bit weights."
        ) from error
    return torch.ops.bitsandbytes


def nf4_values(device: torch.device) -> Tensor:
    """Return the 16 values of NF4 in fp32."""
    if device not in _NF4_VALUES:
        require_bitsandbytes()
        from bitsandbytes.functional import get_4bit_type

        _NF4_VALUES[device] = get_4bit_type("nf4", device="cpu").to(device)
    return _NF4_VALUES[device]


def nested_code(device: torch.device) -> Tensor:
    """Return the 256 values of an 8-bit scale."""
    if device not in _NESTED_CODES:
        require_bitsandbytes()
        from bitsandbytes.functional import create_dynamic_map

        _NESTED_CODES[device] = create_dynamic_map().to(device)
    return _NESTED_CODES[device]


def prepare_tables(device: torch.device) -> None:
    """Make the tables for a device. Inside a compiled graph, they can be read but not made."""
    nf4_values(device)
    nested_code(device)


_NF4_VALUES: dict[torch.device, Tensor] = {}
_NESTED_CODES: dict[torch.device, Tensor] = {}
