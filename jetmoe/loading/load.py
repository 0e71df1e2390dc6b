"""Load a safetensors checkpoint into a model, in 16 bits or with 4-bit experts, or convert it to 4 bits on disk.

    model = load(AutoModelForCausalLM, folder, quantization="nf4", device="cuda")
    convert(folder, to)         # resumable

Experts are read one at a time and quantized on their final device, so peak memory is the final size plus one slice. One
`CheckpointError` reports all problems with the files before any weight is read. Names are those of the released
checkpoints. The scales of a 4-bit `x.weight` are stored next to it, under bitsandbytes' names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import GenerationConfig

from jetmoe.config import MoeConfig
from jetmoe.loading.checkpoint import Progress, Stored, is_4bit, read_model_config, renamed_for, stored_tensors
from jetmoe.loading.devices import as_device, device_of, dispatch_model, layer_devices
from jetmoe.loading.slots import check_slots, quantization_config, slots_of
from jetmoe.nf4.tensor import NF4Tensor

Quantization = Literal["nf4"]
# Accepted and ignored: arguments that the Auto classes add, and options with only one behaviour here.
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
    config: MoeConfig | None = None,
    attn_implementation: str | None = None,
    progress: Progress = lambda done, total: None,
) -> Any:
    """Load a model in eval mode, without gradients.

    Args:
        model_class: a class of this package, or an Auto class of transformers, which picks one by the configuration.
        folder: config.json and safetensors, one file or shards, 16-bit or 4-bit. A 4-bit checkpoint stays 4-bit.
        dtype: dtype of weights that are not quantized, and of 4-bit weights after dequantization.
        device_map: "auto" or accelerate's map of modules to devices; overrides `device`.

    Raises:
        CheckpointError: files are missing, damaged, of another model family, or too large for the device.
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
    config: MoeConfig,
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
    """Build a model as in `load`, from tensors that `stored_tensors` returned."""
    if quantized := is_4bit(stored):
        quantization = "nf4"
        double_quantization = any(name.endswith(".nested_absmax") for name in stored)
    if mapping := getattr(model_class, "_model_mapping", None):
        model_class = mapping[type(config)]
    with torch.device("meta"):
        model: Any = model_class._from_config(config, attn_implementation=attn_implementation, dtype=dtype)
    stored = renamed_for(model, stored)
    slots = slots_of(model, quantization == "nf4", double_quantization, dtype)
    if quantized:  # weights from tiles have plain scales, others can be doubly quantized
        for slot in slots:
            slot.double = any(name.startswith(f"{slot.name}.nested_") for name in stored)
    check_slots(slots, stored, quantized, config)
    places = layer_devices(model, slots, as_device(device), device_map)
    done, total = 0, sum(tensor.nbytes for tensor in stored.values())
    for slot in slots:
        # Tiles are for computing on the CPU. Offloaded weights stay in rows, because they run on another device.
        for count in slot.fill(stored, device_of(places, slot.name), tiles=len(places) == 1):
            done += count
            progress(done, total)
    progress(total, total)
    model.tie_weights()
    if quantization:
        model.config.quantization_config = quantization_config(double_quantization)
        model.is_loaded_in_4bit = True  # read by PEFT and accelerate
        model._weight_conversions = []  # transformers can't split 4-bit weights into those of single experts
    model.eval().requires_grad_(False)
    return dispatch_model(model, places)


def asked_for_4bit(name_or_path: str | Path | None, quantization: str | None, kwargs: dict[str, Any]) -> bool | None:
    """Return whether to use double quantization, or None without 4 bits; remove quantization_config from `kwargs`.

    Raises:
        ValueError: another quantization is requested.
    """
    asked = kwargs.pop("quantization_config", None)
    if asked is not None and not isinstance(asked, dict):
        asked = asked.to_dict()
    if quantization is not None and quantization != "nf4":
        raise ValueError(f"quantization={quantization!r} is not supported; use 'nf4' or None.")
    if asked is None and quantization is None:
        asked = _saved_quantization(name_or_path, kwargs)
    if asked is None:
        return False if quantization else None
    if not asked.get("load_in_4bit") or (asked.get("bnb_4bit_quant_type") or "nf4") not in ("nf4", "fp4"):
        raise ValueError(
            f"{asked.get('quant_method', 'This method')} quantizes linear layers and no expert, which would leave most "
            "weights in 16 bits. jetmoe has 4-bit NF4 for both; use BitsAndBytesConfig(load_in_4bit=True)."
        )
    return bool(asked.get("bnb_4bit_use_double_quant"))


def _saved_quantization(name_or_path: str | Path | None, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Return the quantization_config of config.json, from a folder or from the hub."""
    if name_or_path is None:
        return None
    if Path(name_or_path).is_dir() and not (Path(name_or_path) / kwargs.get("subfolder", "") / "config.json").is_file():
        return None  # loading reports the missing file
    hub = {name: kwargs[name] for name in (*HUB_ARGUMENTS, "subfolder") if name in kwargs}
    return MoeConfig.get_config_dict(name_or_path, **hub)[0].get("quantization_config")


def load_pretrained(model_class: Any, name_or_path: str | Path, double: bool, **kwargs) -> Any:
    """Call `load` with the arguments of `from_pretrained`, for a folder or a hub repository.

    Raises:
        TypeError: an argument is not supported with 4-bit weights.
    """
    hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
    subfolder = kwargs.pop("subfolder", "")
    dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
    taken = ("config", "device_map", "progress", "attn_implementation")
    arguments: dict[str, Any] = {name: kwargs.pop(name) for name in taken if name in kwargs}
    others = [name for name, value in kwargs.items() if value and name not in ALWAYS_SO]
    if others:
        raise TypeError(f"4-bit weights don't support these arguments: {', '.join(others)}. Remove them.")
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
    """Return the share of a model's parameters in 4 bits, 0 to 1."""
    total = quantized = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)  # bitsandbytes packs the weights
        count = parameter.numel() if state is None else torch.Size(state.shape).numel()
        total += count
        quantized += count if state is not None or isinstance(parameter, NF4Tensor) else 0
    return quantized / total
