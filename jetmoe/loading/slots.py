"""Slots: the target of each tensor of a checkpoint, with its parameter, final dtype and device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from jetmoe.config import MoeConfig
from jetmoe.experts.experts import Experts
from jetmoe.loading.checkpoint import HEADS, CheckpointError, Stored, name_list
from jetmoe.nf4 import cpu as nf4_cpu
from jetmoe.nf4.parts import BLOCK, BYTES_PER_WEIGHT, SUFFIXES, Parts, empty, require_bitsandbytes
from jetmoe.nf4.tensor import NF4Tensor, copy_into, quantize


def quantization_config(double: bool) -> dict[str, Any]:
    """Return the quantization_config of a 4-bit checkpoint, with the fields of transformers' BitsAndBytesConfig."""
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": double,
    }


@dataclass
class Slot:
    """A parameter of the model, on the meta device until `fill`."""

    name: str
    module: Any
    shape: torch.Size
    dtype: torch.dtype
    quantized: bool
    double: bool

    def expected(self, stored_4bit: bool) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of its tensors in a checkpoint."""
        if not (self.quantized and stored_4bit):
            return {self.name: tuple(self.shape)}
        if not isinstance(self.module, Experts):
            rows, columns = self.shape  # the format of bitsandbytes' Linear4bit
            return {self.name: (rows * columns // 2, 1), f"{self.name}.absmax": (rows * columns // BLOCK,)}
        parts = empty(tuple(self.shape), self.double, "meta")._asdict()  # type: ignore[arg-type]
        return {f"{self.name}{SUFFIXES[k]}": tuple(part.shape) for k, part in parts.items() if part is not None}

    @property
    def final_bytes(self) -> int:
        numbers = self.shape.numel()
        return int(numbers * BYTES_PER_WEIGHT) if self.quantized else numbers * self.dtype.itemsize

    def fill(self, stored: dict[str, Stored], device: torch.device, tiles: bool = True) -> Iterator[int]:
        """Read the parameter and convert it on the device; yield the bytes read, slice by slice."""
        if self.name not in stored:  # a new head
            weight = torch.empty(self.shape, dtype=self.dtype, device=device)
            self._put(nn.init.normal_(weight, std=0.01))
        elif not self.quantized:
            self._put(stored[self.name].read().to(device, self.dtype))
            yield stored[self.name].nbytes
        elif isinstance(self.module, Experts):
            yield from self._fill_experts(stored, device, tiles)
        else:
            yield from self._fill_linear(stored, device, tiles)

    def _fill_experts(self, stored: dict[str, Stored], device: torch.device, tiles: bool) -> Iterator[int]:
        parts = empty(tuple(self.shape), self.double, device, tiles and self._tiles(device))  # type: ignore[arg-type]
        self._put(NF4Tensor(parts, self.dtype))
        sources = [stored[name] for suffix in SUFFIXES.values() if (name := self.name + suffix) in stored]
        for e in range(self.shape[0]):
            read = [source.read(e).unsqueeze(0).to(device) for source in sources]
            rows = Parts(*read) if len(read) > 1 else quantize(read[0].to(self.dtype), self.double).parts
            copy_into(parts.expert(e), rows.tile() if parts.tiled else rows)
            yield sum(source.nbytes for source in sources) // self.shape[0]

    def _tiles(self, device: torch.device) -> bool:
        return device.type == "cpu" and self.dtype == torch.bfloat16 and nf4_cpu.supported()

    def _fill_linear(self, stored: dict[str, Stored], device: torch.device, tiles: bool) -> Iterator[int]:
        from bitsandbytes.nn import Params4bit

        weight = stored[self.name].read()
        beside = [tensor for name, tensor in stored.items() if name.startswith(f"{self.name}.")]
        if beside:
            statistics = {tensor.name.removeprefix(f"{self.name}."): tensor.read() for tensor in beside}
            parameter = Params4bit.from_prequantized(weight, statistics, device=str(device), module=self.module)
        else:
            unquantized: Any = Params4bit(
                weight.to(self.dtype), False, compress_statistics=self.double, quant_type="nf4", module=self.module
            )
            parameter = unquantized.to(device)
        self._put(parameter)
        if tiles and self._tiles(device):
            self.module.tile()
        yield stored[self.name].nbytes + sum(tensor.nbytes for tensor in beside)

    def _put(self, value: Tensor) -> None:
        parameter = value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)
        setattr(self.module, self.name.rpartition(".")[2], parameter)


def slots_of(model: PreTrainedModel, quantized: bool, double: bool, dtype: torch.dtype) -> list[Slot]:
    """Return a slot per parameter; with `quantized`, linear layers of attention become bitsandbytes' Linear4bit."""
    projections = tuple(f".{name}" for name in model.config.family.projections)
    if quantized:
        require_bitsandbytes()
        from jetmoe.nf4.linear import TiledLinear4bit

        experts = [module for module in model.modules() if isinstance(module, Experts)]
        inputs = {getattr(module, name).shape[-1] for module in experts for name in module.tensors}
        if odd := sorted(size for size in inputs if size % BLOCK):
            raise CheckpointError(
                f"4-bit weights need input sizes that are multiples of {BLOCK}, and this model has "
                f"{', '.join(map(str, odd))}; load it in 16 bits."
            )
        for name, module in list(model.named_modules()):
            if name.endswith(projections):
                rows, columns = module.weight.shape
                bias = module.bias is not None
                model.set_submodule(name, TiledLinear4bit(columns, rows, bias, dtype, double, "nf4", device="meta"))
    slots = []
    for name, parameter in model.named_parameters():  # lists tied parameters once
        module = model.get_submodule(name.rpartition(".")[0])
        four_bit = quantized and (isinstance(module, Experts) or name.removesuffix(".weight").endswith(projections))
        slots.append(Slot(name, module, parameter.shape, dtype, four_bit, double))
    return slots


def quantized_tensors(slots: Sequence[Slot], stored: dict[str, Stored]) -> dict[str, Tensor]:
    """Return the tensors of a 4-bit file for these parameters, and free the parameters."""
    tensors: dict[str, Tensor] = {}
    for slot in slots:
        for _ in slot.fill(stored, torch.device("cpu"), tiles=False):
            pass
        prefix, _, leaf = slot.name.rpartition(".")
        tensors |= {
            name: tensor.contiguous()
            for name, tensor in slot.module.state_dict(prefix=f"{prefix}.").items()
            if name.startswith(slot.name)
        }
        delattr(slot.module, leaf)
    return tensors


def check_slots(slots: Sequence[Slot], stored: dict[str, Stored], stored_4bit: bool, config: MoeConfig) -> None:
    """Raise CheckpointError if tensors are missing, unexpected or of another shape; the message names all."""
    expected = {name: shape for slot in slots for name, shape in slot.expected(stored_4bit).items()}
    problems = []
    missing = [name for name in expected if name not in stored and name not in HEADS]
    weights = tuple(slot.name + "." for slot in slots if slot.quantized)
    surplus = [n for n in stored if n not in expected and n != "lm_head.weight" and not n.startswith(weights)]
    if not missing:
        surplus = [name for name in surplus if name not in HEADS]
    if missing:
        problems.append(f"missing: {name_list(missing)}")
    if surplus:
        problems.append(f"unexpected: {name_list(surplus)}")
    for name, shape in expected.items():
        if name in stored and stored[name].shape != shape:
            problems.append(f"{name} is {list(stored[name].shape)} instead of {list(shape)}")
    if problems:
        raise CheckpointError(
            f"The weights do not match config.json ({config.num_hidden_layers} layers, "
            f"{config.num_local_experts} experts): {'; '.join(problems)}. Use the config.json that belongs to them."
        )
