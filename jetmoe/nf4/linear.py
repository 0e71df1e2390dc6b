"""4-bit linear layers: bitsandbytes' `Linear4bit`, with faster products on a CPU. Imports bitsandbytes."""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor

from jetmoe import device
from jetmoe.autograd import is_exporting
from jetmoe.nf4 import cpu as nf4_cpu
from jetmoe.nf4.parts import Parts

# Up to this many rows, one call that reads the weight row by row is faster than a matrix product.
FEW_ROWS = 4


class TiledLinear4bit(Linear4bit):
    """`Linear4bit` with a copy of its weight in `tiles`, a single expert, which a CPU multiplies without gradients.

    A copy is needed because a weight that bitsandbytes packs has no gradient and can't be saved or dequantized.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.support_avx512bf16_for_cpu = False  # otherwise it packs its weight
        self.tiles: Parts | None = None

    def tile(self) -> None:
        """Make the tiles, again after every change of the weight."""
        state: Any = self.weight.quant_state  # type: ignore[attr-defined]
        rows = self.weight.data.view(1, self.out_features, -1), state.absmax.view(1, self.out_features, -1)
        nested = (state.state2.absmax.view(1, -1), state.offset.view(1)) if state.nested else ()
        self.tiles = Parts(*rows, *nested).tile()

    def forward(self, x: Tensor) -> Tensor:
        if is_exporting():
            raise NotImplementedError("bitsandbytes' 4-bit layers can't be exported. Load the model in 16 bits first.")
        needs_gradient = x.requires_grad and torch.is_grad_enabled()
        if self.tiles is None or not device.on_cpu(x) or needs_gradient:
            return super().forward(x)
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) <= FEW_ROWS:
            result = nf4_cpu.chosen_linear(rows, torch.zeros(len(rows), dtype=torch.int64), self.tiles)
        else:
            result = nf4_cpu.sorted_linear(rows, torch.tensor([len(rows)]), self.tiles)
        result = result.view(*x.shape[:-1], -1)
        return result if self.bias is None else result + self.bias
