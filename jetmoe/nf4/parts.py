"""How 4-bit expert weights are stored: codes and scales in bitsandbytes' layout, in rows or in tiles."""

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
