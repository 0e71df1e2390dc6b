"""Streams a checkpoint of safetensors into a model, in 16 bits or with 4-bit experts; converts one to 4-bit on disk.

    model = load(JetMoeForCausalLM, folder, quantization="nf4", device="cuda")
    convert(folder, to)         # resumable

One expert at a time is read and quantized on its final device, so memory peaks at the final size and a slice.
Everything wrong with the files is said in one `CheckpointError` before any weight is read. Names are those of the
released checkpoints; the scales of a 4-bit `x.weight` lie beside it, under bitsandbytes' names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import GenerationConfig

from jetmoe.config import JetMoeConfig
from jetmoe.loading.checkpoint import Progress, Stored, is_4bit, read_model_config, stored_tensors
from jetmoe.loading.devices import as_device, device_of, dispatch_model, layer_devices
from jetmoe.loading.slots import check_slots, quantization_config, slots_of
from jetmoe.nf4.tensor import NF4Tensor

Quantization = Literal["nf4"]
# What the Auto classes pass on by themselves, and what is never otherwise here.
ALWAYS_SO = ("adapter_kwargs", "_from_auto", "_commit_hash", "use_safetensors", "weights_only", "low_cpu_mem_usage")
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download")


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
    config = config or read_model_config(folder)
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
    slots = slots_of(model, quantization == "nf4", double_quantization, dtype)
    if quantized:  # what was in tiles is stored with plain scales, the rest maybe doubly quantized
        for slot in slots:
            slot.double = any(name.startswith(f"{slot.name}.nested_") for name in stored)
    check_slots(slots, stored, quantized, config)
    places = layer_devices(model, slots, as_device(device), device_map)
    done, total = 0, sum(tensor.nbytes for tensor in stored.values())
    for slot in slots:
        # Tiles are for computing on the CPU; weights that only rest there travel in rows.
        for count in slot.fill(stored, device_of(places, slot.name), tiles=len(places) == 1):
            done += count
            progress(done, total)
    progress(total, total)
    model.tie_weights()
    if quantization:
        model.config.quantization_config = quantization_config(double_quantization)
    model.eval().requires_grad_(False)
    return dispatch_model(model, places)


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


def quantized_share(model: nn.Module) -> float:
    """The share of a model's parameters that are in 4 bits, 0 to 1."""
    total = quantized = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)  # of bitsandbytes, whose shape is not that of the weights
        count = parameter.numel() if state is None else torch.Size(state.shape).numel()
        total += count
        quantized += count if state is not None or isinstance(parameter, NF4Tensor) else 0
    return quantized / total
