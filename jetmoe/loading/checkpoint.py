"""Read the tensors of a checkpoint by name, and report all problems with its files."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from jetmoe.config import MoeConfig
from jetmoe.families import FAMILIES

Progress = Callable[[int, int], None]
"""Called with the bytes read so far and the bytes of the entire checkpoint."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "U8": torch.uint8,
}
ENTRY = {"dtype", "shape", "data_offsets"}
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
INDEX = "model.safetensors.index.json"
# The name of a tensor of one expert: released checkpoints of several families have three of them.
SINGLE_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight")
FUSED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
# These weights can be missing: the checkpoint of a language model has no classification head.
HEADS = ("score.weight",)
GIB = 2**30


class CheckpointError(ValueError):
    """The checkpoint can't be loaded. The message gives the reason and the fix."""


@dataclass(frozen=True)
class Stored:
    """A tensor of a checkpoint."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """Offset of the tensor in the file, in bytes."""

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()

    def files(self) -> Iterator[Stored]:
        """Yield each tensor of a file that this one consists of."""
        yield self

    def read(self, index: int | None = None) -> Tensor:
        """Return the tensor, or its `index`-th slice along the first dimension."""
        # Not memory-mapped: mapped pages count as memory of this process.
        shape, size = (self.shape, self.nbytes) if index is None else (self.shape[1:], self.nbytes // self.shape[0])
        data = bytearray(size)
        with self.file.open("rb") as opened:
            opened.seek(self.start + size * (index or 0))
            opened.readinto(data)
        return torch.frombuffer(data, dtype=self.dtype).view(shape)


@dataclass(frozen=True)
class StoredExperts:
    """The weights of E experts that a checkpoint holds in a tensor, or a few, for each expert: `[E, out, in]`."""

    name: str
    experts: tuple[tuple[Stored, ...], ...]
    """For each expert, the tensors that are concatenated along their first dimension."""

    @property
    def dtype(self) -> torch.dtype:
        return self.experts[0][0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        rows = sum(part.shape[0] for part in self.experts[0])
        return len(self.experts), rows, *self.experts[0][0].shape[1:]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for parts in self.experts for part in parts)

    def files(self) -> Iterator[Stored]:
        return (part for parts in self.experts for part in parts)

    def read(self, index: int | None = None) -> Tensor:
        """Return all weights, or those of one expert."""
        if index is None:
            return torch.stack([self.read(e) for e in range(len(self.experts))])
        return torch.cat([part.read() for part in self.experts[index]])


def fused(stored: dict[str, Stored]) -> dict[str, Any]:
    """Return the tensors of a checkpoint with those of single experts put together as transformers' names do.

    Raises:
        CheckpointError: experts are missing, or they differ in shape.
    """
    tensors: dict[str, Any] = {}
    found: dict[str, dict[int, dict[str, Stored]]] = {}
    for name, tensor in stored.items():
        if match := SINGLE_EXPERT.fullmatch(name):
            layer, number, leaf = match[1], int(match[2]), match[3]
            found.setdefault(layer, {}).setdefault(number, {})[leaf] = tensor
        else:
            tensors[name] = tensor
    for layer, experts in found.items():
        _check_experts(layer, experts)
        for leaf, parts in FUSED.items():
            rows = tuple(tuple(experts[e][part] for part in parts) for e in range(len(experts)))
            tensors[f"{layer}.{leaf}"] = StoredExperts(f"{layer}.{leaf}", rows)
    return tensors


def _check_experts(layer: str, experts: dict[int, dict[str, Stored]]) -> None:
    names = [
        f"{layer}.{e}.{part}.weight" for e in range(max(experts) + 1) for parts in FUSED.values() for part in parts
    ]
    there = {f"{layer}.{e}.{part}.weight": one for e, parts in experts.items() for part, one in parts.items()}
    if missing := [name for name in names if name not in there]:
        raise CheckpointError(f"The checkpoint lacks {name_list(missing)[:300]}. Download the files again.")
    for part in (part for parts in FUSED.values() for part in parts):
        shapes = {one[part].shape for one in experts.values()}
        if len(shapes) > 1:
            raise CheckpointError(f"The experts of {layer} differ in shape: {sorted(shapes)} for {part}.")


def read_model_config(folder: Path) -> MoeConfig:
    """Load the configuration; raise CheckpointError if it is missing or of another model family."""
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{folder} holds no config.json; use the folder of a complete checkpoint.")
    family = _read_json(file).get("model_type")
    if family not in FAMILIES:
        names = " or ".join(one.name for one in FAMILIES.values())
        raise CheckpointError(f"{folder.name} is a {family!r} checkpoint, not {names}; pick a model of these families.")
    return AutoConfig.from_pretrained(folder)


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Return every tensor of a checkpoint by name, reading only the headers.

    Raises:
        CheckpointError: no safetensors are found, or files are missing, damaged or truncated; all are named.
    """
    tensors: dict[str, Stored] = {}
    problems = []
    for file in _files(folder):
        if not file.is_file():
            problems.append(f"{file.name} is missing")
            continue
        header, start = _header(file)
        if header is None:
            problems.append(f"{file.name} is damaged")
            continue
        if unknown := sorted({entry["dtype"] for entry in header.values()} - set(DTYPES)):
            raise CheckpointError(f"{file.name} holds {', '.join(unknown)}; checkpoints are in F32, BF16 or F16.")
        size = file.stat().st_size
        cut = [name for name, entry in header.items() if start + entry["data_offsets"][1] > size]
        if cut:
            problems.append(f"{file.name} is truncated in {name_list(cut)}")
        tensors |= {
            name: Stored(name, file, DTYPES[entry["dtype"]], tuple(entry["shape"]), start + entry["data_offsets"][0])
            for name, entry in header.items()
        }
    if problems:
        raise CheckpointError(f"{folder.name} is incomplete: {'; '.join(problems)}. Download these files again.")
    return fused(tensors)


def renamed_for(model: nn.Module, stored: dict[str, Stored]) -> dict[str, Stored]:
    """Return the tensors under the names of a model with or without a head, whichever the checkpoint is of."""
    has_head, in_model = hasattr(model, "model"), any(name.startswith("model.") for name in stored)
    if has_head == in_model:
        return stored
    names = {name: f"model.{name}" if has_head else name.removeprefix("model.") for name in stored}
    heads = ("lm_head.", "score.")
    return {new: replace(stored[old], name=new) for old, new in names.items() if has_head or not old.startswith(heads)}


def is_4bit(stored: dict[str, Stored]) -> bool:
    return any(name.endswith(".absmax") for name in stored)


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise CheckpointError(f"{index} names no files of weights; download it again.")
        return [folder / name for name in sorted(set(weight_map.values()))]
    files = sorted(folder.glob("model*.safetensors"))
    if files:
        return files
    pickles = [file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern)]
    if pickles:
        raise CheckpointError(
            f"{folder.name} holds pickle files ({', '.join(pickles)}), which can run code when opened, and no "
            "safetensors. Use a revision with safetensors."
        )
    raise CheckpointError(f"{folder} holds no model.safetensors; use the folder of a complete checkpoint.")


def _header(file: Path) -> tuple[dict[str, Any] | None, int]:
    """Return the header of a safetensors file, or None if it can't be read, and the offset of the data."""
    with file.open("rb") as opened:
        length = opened.read(8)
        size = struct.unpack("<Q", length)[0] if len(length) == 8 else 0
        if not 0 < size <= file.stat().st_size - 8:
            return None, 0
        try:
            header = json.loads(opened.read(size))
        except ValueError:
            return None, 0
    if not isinstance(header, dict):
        return None, 0
    header.pop("__metadata__", None)
    is_whole = all(isinstance(entry, dict) and entry.keys() >= ENTRY for entry in header.values())
    return (header, 8 + size) if is_whole else (None, 0)


def _read_json(file: Path) -> dict[str, Any]:
    """Raises CheckpointError: the file holds no JSON object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); download it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is damaged (it holds no object); download it again.")
    return content


def name_list(names: Sequence[str]) -> str:
    """Join names, with one entry for several layers: `model.layers.{12-23}.mlp.bias`."""
    numbers: dict[str, list[int]] = {}
    for name in names:
        parts = name.split(".")
        layer = next((part for part in parts if part.isdigit()), None)
        numbers.setdefault(name if layer is None else name.replace(f".{layer}.", ".{}.", 1), []).append(int(layer or 0))
    return ", ".join(pattern.replace("{}", _ranges(layers)) for pattern, layers in numbers.items())


def _ranges(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    whole = sorted(numbers) == list(range(min(numbers), max(numbers) + 1))
    return f"{{{min(numbers)}-{max(numbers)}}}" if whole else f"{{{','.join(map(str, sorted(numbers)))}}}"
