"""Streams a checkpoint of safetensors into a model, in 16 bits or with 4-bit experts; converts one to 4-bit on disk.

    model = load(JetMoeForCausalLM, folder, quantization="nf4", device="cuda")
    convert(folder, to)         # resumable

One expert at a time is read and quantized on its final device, so memory peaks at the final size and a slice.
Everything wrong with the files is said in one `CheckpointError` before any weight is read. Names are those of the
released checkpoints; the scales of a 4-bit `x.weight` lie beside it, under bitsandbytes' names.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import send_to_device
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GenerationConfig

from jetmoe.config import JetMoeConfig
from jetmoe.experts import JetMoeExperts
from jetmoe.nf4 import cpu as nf4_cpu
from jetmoe.nf4.parts import BLOCK, BYTES_PER_WEIGHT, SUFFIXES, Parts, empty, require_bitsandbytes
from jetmoe.nf4.tensor import NF4Tensor, copy_into, quantize

Quantization = Literal["nf4"]
Progress = Callable[[int, int], None]
"""Called with the bytes read so far and the bytes of the whole checkpoint."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "U8": torch.uint8,
}
INDEX = "model.safetensors.index.json"
# What a conversion was begun with; lies beside its files.
RECEIPT = "conversion.json"
# A head may be new: the checkpoint of a language model has none for classification.
HEADS = ("score.weight",)
BESIDE_WEIGHTS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
# What the Auto classes pass on by themselves, and what is never otherwise here.
ALWAYS_SO = ("adapter_kwargs", "_from_auto", "_commit_hash", "use_safetensors", "weights_only", "low_cpu_mem_usage")
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
# Of each tensor, enough to tell two trainings of one model apart.
SAMPLE_BYTES = 4096
GIB = 2**30


class CheckpointError(ValueError):
    """The checkpoint can't be loaded; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class Stored:
    """A tensor of a checkpoint."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """The byte of the file where it begins."""

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()

    def read(self, index: int | None = None) -> Tensor:
        """The tensor, or the `index`-th along its first dimension."""
        # Not mapped into memory: the pages of a map count as memory of this process.
        shape, size = (self.shape, self.nbytes) if index is None else (self.shape[1:], self.nbytes // self.shape[0])
        data = bytearray(size)
        with self.file.open("rb") as opened:
            opened.seek(self.start + size * (index or 0))
            opened.readinto(data)
        return torch.frombuffer(data, dtype=self.dtype).view(shape)


def load(
    model_class: Any,
    folder: Path | str,
    *,
    quantization: Quantization | None = None,
    double_quantization: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
    device_map: str | dict[str, Any] | None = None,
    config: JetMoeConfig | None = None,
    attn_implementation: str | None = None,
    progress: Progress = lambda done, total: None,
) -> Any:
    """A model in eval mode, without gradients.

    Args:
        folder: config.json and safetensors, one file or shards; 16-bit, or already 4-bit and then it stays so.
        dtype: of what is not quantized, and of what 4-bit weights dequantize to.
        device_map: "auto" or accelerate's map of modules to devices; stands above `device`.

    Raises:
        CheckpointError: files are missing, damaged, of another family, or too large for the device.
    """
    folder = Path(folder)
    stored = stored_tensors(folder)
    config = config or read_config(folder)
    model = build(
        model_class,
        config,
        stored,
        quantization=quantization,
        double_quantization=double_quantization,
        dtype=dtype,
        device=device,
        device_map=device_map,
        attn_implementation=attn_implementation,
        progress=progress,
    )
    if (folder / "generation_config.json").is_file() and model.can_generate():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    model.name_or_path = str(folder)
    return model


@torch.no_grad()
def build(
    model_class: Any,
    config: JetMoeConfig,
    stored: dict[str, Stored],
    *,
    quantization: Quantization | None = None,
    double_quantization: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
    device_map: str | dict[str, Any] | None = None,
    attn_implementation: str | None = None,
    progress: Progress = lambda done, total: None,
) -> Any:
    """`load` from tensors that are known already; see there."""
    if quantized := is_4bit(stored):
        quantization = "nf4"
        double_quantization = any(name.endswith(".nested_absmax") for name in stored)
    with torch.device("meta"):
        model: Any = model_class._from_config(config, attn_implementation=attn_implementation, dtype=dtype)
    slots = _slots(model, quantization == "nf4", double_quantization, dtype)
    if quantized:  # what was in tiles is stored with plain scales, the rest maybe doubly quantized
        for slot in slots:
            slot.double = any(name.startswith(f"{slot.name}.nested_") for name in stored)
    _check(slots, stored, quantized, config)
    places = _places(model, slots, _device(device), device_map)
    done, total = 0, sum(tensor.nbytes for tensor in stored.values())
    for slot in slots:
        # Tiles are for computing on the CPU; weights that only rest there travel in rows.
        for count in slot.fill(stored, _place(places, slot.name), tiles=len(places) == 1):
            done += count
            progress(done, total)
    progress(total, total)
    model.tie_weights()
    if quantization:
        model.config.quantization_config = quantization_config(double_quantization)
    model.eval().requires_grad_(False)
    return _spread(model, places)


@torch.no_grad()
def convert(
    folder: Path | str,
    to: Path | str,
    *,
    double_quantization: bool = False,
    progress: Progress = lambda done, total: None,
) -> None:
    """Writes the 4-bit checkpoint of a 16-bit one, a file a decoder layer; started again, it goes on where it stopped.

    Raises:
        CheckpointError: as `load`, or `to` holds what was begun from another checkpoint or with other settings.
    """
    from jetmoe.modeling import JetMoeForCausalLM

    folder, to = Path(folder), Path(to)
    config, stored = read_config(folder), stored_tensors(folder)
    if is_4bit(stored):
        raise CheckpointError(f"{folder.name} is 4-bit already; give the folder of the 16-bit checkpoint.")
    with torch.device("meta"):
        model: Any = JetMoeForCausalLM(config)
    model.to(torch.bfloat16)
    slots = _slots(model, True, double_quantization, torch.bfloat16)
    _check(slots, stored, False, config)
    _begin(to, {"double_quantization": double_quantization, "source_sha256": _fingerprint(stored)})
    done, total = 0, sum(tensor.nbytes for tensor in stored.values())
    weight_map: dict[str, str] = {}
    for number, (_, layer) in enumerate(groupby(slots, key=lambda slot: slot.name.split(".")[:3])):
        name, group = f"model-{number:05d}.safetensors", list(layer)
        if not (to / name).is_file():
            save_file(_quantized(group, stored), to / f"{name}.part", metadata={"format": "pt"})
            (to / f"{name}.part").rename(to / name)
        with safe_open(to / name, framework="pt") as written:
            weight_map |= dict.fromkeys(written.keys(), name)
        done += sum(stored[slot.name].nbytes for slot in group if slot.name in stored)
        progress(done, total)
    config.quantization_config = quantization_config(double_quantization)
    config.save_pretrained(to)
    for file in folder.iterdir():
        if file.name in BESIDE_WEIGHTS:
            shutil.copyfile(file, to / file.name)
    size = sum((to / file).stat().st_size for file in set(weight_map.values()))
    (to / INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}, indent=1))
    progress(total, total)


def _begin(to: Path, receipt: dict[str, Any]) -> None:
    """Raises CheckpointError: other work than the receipt's has left files there."""
    to.mkdir(parents=True, exist_ok=True)
    file = to / RECEIPT
    if not file.is_file() and not list(to.glob("*.safetensors")):
        part = to / f"{RECEIPT}.part"
        part.write_text(json.dumps(receipt, indent=1))
        part.rename(file)
    elif not file.is_file() or json.loads(file.read_text()) != receipt:
        raise CheckpointError(
            f"{to} holds weights of another checkpoint or of other settings than asked for now; convert to another "
            "folder, or delete this one first."
        )


def _fingerprint(stored: dict[str, Stored]) -> str:
    """Of names, shapes and the beginning of every tensor, wherever the files lie."""
    digest = hashlib.sha256()
    for name, tensor in sorted(stored.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        with tensor.file.open("rb") as opened:
            opened.seek(tensor.start)
            digest.update(opened.read(min(SAMPLE_BYTES, tensor.nbytes)))
    return digest.hexdigest()


def asked_for_4bit(name_or_path: str | Path, quantization: str | None, kwargs: dict[str, Any]) -> bool | None:
    """Whether double quantization is wanted where 4 bits are; None where they are not. Takes quantization_config out.

    Raises:
        ValueError: another quantization is asked for.
    """
    asked = kwargs.pop("quantization_config", None)
    if asked is not None and not isinstance(asked, dict):
        asked = asked.to_dict()
    if quantization is not None and quantization != "nf4":
        raise ValueError(f"quantization={quantization!r} is not known; use 'nf4' or None.")
    if asked is None and quantization is None:
        asked = _saved_quantization(name_or_path, kwargs)
    if asked is None:
        return False if quantization else None
    if not asked.get("load_in_4bit") or (asked.get("bnb_4bit_quant_type") or "nf4") not in ("nf4", "fp4"):
        raise ValueError("JetMoE loads in 16 or 32 bits or in 4-bit NF4; use BitsAndBytesConfig(load_in_4bit=True).")
    return bool(asked.get("bnb_4bit_use_double_quant"))


def _saved_quantization(name_or_path: str | Path, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """What config.json says of 4 bits, in a folder or on the hub."""
    if Path(name_or_path).is_dir() and not (Path(name_or_path) / kwargs.get("subfolder", "") / "config.json").is_file():
        return None  # which loading will say
    hub = {name: kwargs[name] for name in (*HUB_ARGUMENTS, "subfolder") if name in kwargs}
    return JetMoeConfig.get_config_dict(name_or_path, **hub)[0].get("quantization_config")


def load_pretrained(model_class: Any, name_or_path: str | Path, double: bool, **kwargs) -> Any:
    """`load` with the arguments of `from_pretrained`, from a folder or from the hub.

    Raises:
        TypeError: an argument has no meaning for 4-bit weights.
    """
    hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
    subfolder = kwargs.pop("subfolder", "")
    dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
    taken = ("config", "device_map", "progress", "attn_implementation")
    arguments: dict[str, Any] = {name: kwargs.pop(name) for name in taken if name in kwargs}
    others = [name for name, value in kwargs.items() if value and name not in ALWAYS_SO]
    if others:
        raise TypeError(f"These arguments have no meaning for 4-bit weights: {', '.join(others)}.")
    if isinstance(arguments.get("device_map"), str | int | torch.device) and arguments["device_map"] != "auto":
        arguments["device"] = arguments.pop("device_map")
    folder = Path(name_or_path)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        patterns = [str(Path(subfolder) / pattern) for pattern in ("*.safetensors", "*.json")]
        folder = Path(snapshot_download(str(name_or_path), allow_patterns=patterns, **hub))
    dtype = getattr(torch, dtype) if isinstance(dtype, str) and dtype != "auto" else dtype
    return load(
        model_class,
        folder / subfolder,
        quantization="nf4",
        double_quantization=double,
        dtype=dtype if isinstance(dtype, torch.dtype) else torch.bfloat16,
        **arguments,
    )


def read_config(folder: Path) -> JetMoeConfig:
    """Raises CheckpointError: there is none, or it is another family's."""
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{folder} holds no config.json; give the folder of a whole checkpoint.")
    family = json.loads(file.read_text()).get("model_type")
    if family != JetMoeConfig.model_type:
        raise CheckpointError(f"{folder.name} is a {family!r} checkpoint, not a JetMoE; pick a JetMoE model.")
    return JetMoeConfig.from_pretrained(folder)


def quantization_config(double: bool) -> dict[str, Any]:
    """What config.json of a 4-bit checkpoint says, in the words of transformers' BitsAndBytesConfig."""
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": double,
    }


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a checkpoint, by name; only headers are read.

    Raises:
        CheckpointError: no safetensors are there, or some are missing, damaged or cut off; all are named.
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
            raise CheckpointError(
                f"{file.name} holds {', '.join(unknown)}; JetMoE checkpoints are in F32, BF16 or F16."
            )
        size = file.stat().st_size
        cut = [name for name, entry in header.items() if start + entry["data_offsets"][1] > size]
        if cut:
            problems.append(f"{file.name} is cut off in {_names(cut)}")
        tensors |= {
            name: Stored(name, file, DTYPES[entry["dtype"]], tuple(entry["shape"]), start + entry["data_offsets"][0])
            for name, entry in header.items()
        }
    if problems:
        raise CheckpointError(f"{folder.name} is not whole: {'; '.join(problems)}. Download these files again.")
    return tensors


def is_4bit(stored: dict[str, Stored]) -> bool:
    return any(name.endswith(".weight.absmax") for name in stored)


@dataclass
class _Slot:
    """A parameter of the model, empty on the meta device until `fill`."""

    name: str
    module: Any
    shape: torch.Size
    dtype: torch.dtype
    quantized: bool
    double: bool

    def expected(self, stored_4bit: bool) -> dict[str, tuple[int, ...]]:
        """Names and shapes that a file should hold for it."""
        if not (self.quantized and stored_4bit):
            return {self.name: tuple(self.shape)}
        if not isinstance(self.module, JetMoeExperts):
            rows, columns = self.shape  # as bitsandbytes' Linear4bit saves itself
            return {self.name: (rows * columns // 2, 1), f"{self.name}.absmax": (rows * columns // BLOCK,)}
        parts = empty(tuple(self.shape), self.double, "meta")._asdict()  # type: ignore[arg-type]
        return {f"{self.name}{SUFFIXES[k]}": tuple(part.shape) for k, part in parts.items() if part is not None}

    @property
    def final_bytes(self) -> int:
        numbers = self.shape.numel()
        return int(numbers * BYTES_PER_WEIGHT) if self.quantized else numbers * self.dtype.itemsize

    def fill(self, stored: dict[str, Stored], device: torch.device, tiles: bool = True) -> Iterator[int]:
        """Reads and converts it on the device; yields the bytes read, slice by slice."""
        if self.name not in stored:  # a new head
            weight = torch.empty(self.shape, dtype=self.dtype, device=device)
            self._put(nn.init.normal_(weight, std=0.01))
        elif not self.quantized:
            self._put(stored[self.name].read().to(device, self.dtype))
            yield stored[self.name].nbytes
        elif isinstance(self.module, JetMoeExperts):
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
            nf4_cpu.tile_linear(self.module)
        yield stored[self.name].nbytes + sum(tensor.nbytes for tensor in beside)

    def _put(self, value: Tensor) -> None:
        parameter = value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)
        setattr(self.module, self.name.rpartition(".")[2], parameter)


def _slots(model: nn.Module, quantized: bool, double: bool, dtype: torch.dtype) -> list[_Slot]:
    """The model's parameters; with `quantized`, key-value projections become bitsandbytes' Linear4bit first."""
    if quantized:
        require_bitsandbytes()
        from bitsandbytes.nn import Linear4bit

        inputs = {module.weight.shape[-1] for module in model.modules() if isinstance(module, JetMoeExperts)}
        if odd := sorted(size for size in inputs if size % BLOCK):
            raise CheckpointError(
                f"4-bit weights need input sizes that are multiples of {BLOCK}, and this model has "
                f"{', '.join(map(str, odd))}; load it in 16 bits."
            )
        for name, module in list(model.named_modules()):
            if name.endswith(".kv_proj"):
                rows, columns = module.weight.shape
                linear = Linear4bit(columns, rows, False, dtype, double, "nf4", device="meta")
                linear.support_avx512bf16_for_cpu = False  # else it packs itself, see nf4_cpu.tile_linear
                model.set_submodule(name, linear)
    slots = []
    for name, parameter in model.named_parameters():  # tied ones once
        module = model.get_submodule(name.rpartition(".")[0])
        four_bit = quantized and (isinstance(module, JetMoeExperts) or name.endswith(".kv_proj.weight"))
        slots.append(_Slot(name, module, parameter.shape, dtype, four_bit, double))
    return slots


def _quantized(slots: Sequence[_Slot], stored: dict[str, Stored]) -> dict[str, Tensor]:
    """What a 4-bit file holds for these parameters; they are emptied again."""
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


def _check(slots: Sequence[_Slot], stored: dict[str, Stored], stored_4bit: bool, config: JetMoeConfig) -> None:
    """Raises CheckpointError naming everything missing, surplus or of another shape."""
    expected = {name: shape for slot in slots for name, shape in slot.expected(stored_4bit).items()}
    problems = []
    missing = [name for name in expected if name not in stored and name not in HEADS]
    weights = tuple(slot.name + "." for slot in slots if slot.quantized)
    surplus = [n for n in stored if n not in expected and n != "lm_head.weight" and not n.startswith(weights)]
    if not missing:
        surplus = [name for name in surplus if name not in HEADS]
    if missing:
        problems.append(f"missing: {_names(missing)}")
    if surplus:
        problems.append(f"surplus: {_names(surplus)}")
    for name, shape in expected.items():
        if name in stored and stored[name].shape != shape:
            problems.append(f"{name} is {list(stored[name].shape)} instead of {list(shape)}")
    if problems:
        raise CheckpointError(
            f"The weights do not fit their config.json ({config.num_hidden_layers} layers, "
            f"{config.num_local_experts} experts): {'; '.join(problems)}. Use the config.json that belongs to them."
        )


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    files = sorted(folder.glob("model*.safetensors"))
    if files:
        return files
    pickles = [file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern)]
    if pickles:
        raise CheckpointError(
            f"{folder.name} holds pickle files ({', '.join(pickles)}), which can run code when opened, and no "
            "safetensors. Use a revision with safetensors."
        )
    raise CheckpointError(f"{folder} holds no model.safetensors; give the folder of a whole checkpoint.")


def _header(file: Path) -> tuple[dict[str, Any] | None, int]:
    """The header of a safetensors file and where its data starts; None where it can't be read."""
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
    return header, 8 + size


def _names(names: Sequence[str]) -> str:
    """All the names, those of several layers in one: `model.layers.{12-23}.mlp.bias`."""
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


def _places(
    model: nn.Module, slots: Sequence[_Slot], device: torch.device, device_map: str | dict[str, Any] | None
) -> dict[str, torch.device]:
    """The device of each module; "" stands for the whole model.

    Raises:
        CheckpointError: there is no such device, or it is too small.
    """
    if device_map == "auto":
        from accelerate import infer_auto_device_map
        from accelerate.utils import CustomDtype

        device_map = infer_auto_device_map(
            model,
            no_split_module_classes=["JetMoeDecoderLayer"],
            special_dtypes={slot.name: CustomDtype.INT4 for slot in slots if slot.quantized},
        )
    if isinstance(device_map, dict):
        if "disk" in device_map.values():
            raise CheckpointError("The model does not fit into the memory of GPUs and CPU together; use 4-bit.")
        places = {name: _device(place) for name, place in device_map.items()}
        if len(set(places.values())) == 1:
            places = {"": next(iter(places.values()))}
    else:
        places = {"": device}
    for gpu in {place for place in places.values() if place.type == "cuda"}:
        there = [slot for slot in slots if _place(places, slot.name) == gpu]
        _check_gpu(gpu, sum(slot.final_bytes for slot in there), any(slot.quantized for slot in there))
    return places


def _device(place: str | int | torch.device) -> torch.device:
    # A number alone is an error on a machine without GPUs.
    return torch.device("cuda", place) if isinstance(place, int) else torch.device(place)


def _check_gpu(device: torch.device, needed: int, quantized: bool) -> None:
    if not torch.cuda.is_available():
        raise CheckpointError("There is no CUDA device on this machine; load on the CPU with device='cpu'.")
    free, total = torch.cuda.mem_get_info(device)
    if needed > free:
        remedy = "offload a part with device_map='auto'" if quantized else "use quantization='nf4'"
        raise CheckpointError(
            f"The weights need {needed / GIB:.1f} GiB and the GPU has {free / GIB:.1f} of {total / GIB:.1f} GiB free: "
            f"{remedy}, or free memory there."
        )


def _place(places: dict[str, torch.device], name: str) -> torch.device:
    """The device of the longest prefix of the name."""
    while name not in places and name:
        name = name.rpartition(".")[0]
    return places[name]


def _spread(model: nn.Module, places: dict[str, torch.device]) -> nn.Module:
    """Lets every part run where its weights are; parts on the CPU lend theirs to the first accelerator."""
    if len(places) == 1:
        return model
    main = next((device for device in places.values() if device.type != "cpu"), torch.device("cpu"))
    for name, device in places.items():
        module = model.get_submodule(name)
        for part in module if isinstance(module, nn.ModuleList) else [module]:  # a list never runs itself
            add_hook_to_module(part, RunOn(main if device.type == "cpu" else device))
    return model


class RunOn(ModelHook):
    """accelerate's hook that runs a module on a device: inputs go there, and so do weights for as long as it runs."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.at_home: list[tuple[nn.Module, str, nn.Parameter]] = []

    def pre_forward(self, module: nn.Module, *args, **kwargs):
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None and parameter.device != self.device:
                    self.at_home.append((part, name, parameter))
                    part._parameters[name] = _lent(parameter, self.device)
        return send_to_device(args, self.device), send_to_device(kwargs, self.device, skip_keys="past_key_values")

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        for part, name, parameter in self.at_home:
            part._parameters[name] = parameter
        self.at_home = []
        return output


def _lent(parameter: nn.Parameter, device: torch.device) -> nn.Parameter:
    if hasattr(parameter, "quant_state"):  # of bitsandbytes, which moves the scales in place
        return copy.deepcopy(parameter).to(device)  # type: ignore[return-value]
    return nn.Parameter(parameter.to(device), requires_grad=False)


def quantized_share(model: nn.Module) -> float:
    """The share of a model's parameters that are in 4 bits, 0 to 1."""
    total = quantized = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)  # of bitsandbytes, whose shape is not that of the weights
        count = parameter.numel() if state is None else torch.Size(state.shape).numel()
        total += count
        quantized += count if state is not None or isinstance(parameter, NF4Tensor) else 0
    return quantized / total
