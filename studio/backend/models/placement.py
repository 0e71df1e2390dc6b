"""The device and precision of a model, the memory that it needs, and the message if memory runs out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from transformers import AutoModelForCausalLM

from jetmoe.config import MoeConfig
from jetmoe.device import sixteen_bits
from jetmoe.loading.checkpoint import CheckpointError
from jetmoe.loading.load import load
from jetmoe.nf4 import cpu as nf4_cpu
from studio.backend.hosting import demo
from studio.backend.models import catalog
from studio.backend.models.catalog import ModelEntry
from studio.backend.system import plan, zero_gpu
from studio.errors import StudioError

Precision = Literal["auto", "nf4", "bf16", "fp32"]
GIB = 2**30
NVIDIA = Path("/dev")
"""Where the driver puts its devices."""


@dataclass(frozen=True)
class Placement:
    device: str
    precision: str
    """"nf4", "bf16", "fp16" or "fp32"."""
    dtype: torch.dtype
    """Data type of all weights that are not 4-bit."""
    notice: str = ""
    """A sentence for the user if something is slower on this machine than elsewhere."""
    warning: str = ""
    """A sentence for the user if this machine has a GPU that is not used."""


def first_model() -> str:
    """Return the model to load at startup.

    It is `$STUDIO_MODEL` if set, else JetMoE 8B Chat on a Space with a GPU, else the starter, because a download of
    16 GiB must not start unasked.
    """
    on_gpu_space = demo.space_id() is not None and torch.cuda.is_available()
    return os.environ.get("STUDIO_MODEL") or (catalog.CHAT_8B if on_gpu_space else catalog.STARTER.id)


def check_precision(precision: str) -> None:
    """Raise StudioError if the precision is unknown."""
    if precision not in get_args(Precision):
        raise StudioError(f"There is no precision {precision!r}; pick one of {', '.join(get_args(Precision))}.")


def placement(model: ModelEntry, precision: Precision, loaded_gib: float = 0.0) -> Placement:
    """Return the model's device, a GPU if there is one, and its precision.

    Args:
        loaded_gib: memory of a loaded model that can be freed.

    Raises:
        StudioError: the model does not fit into this machine's memory; the message has the figures.
    """
    place = place_of(model, precision)
    # accelerate spreads a model over several GPUs and the main memory.
    is_alone = place.device == "cpu" or torch.cuda.device_count() == 1
    if is_alone and (needed := needed_gib(model, place)) > (free := free_gib(place) + loaded_gib):
        remedy = "close other programs" if place.precision == "nf4" else "load it in nf4"
        raise StudioError(
            f"{model.title} in {place.precision} needs {needed:.1f} GiB of memory and {free:.1f} GiB are free: "
            f"{remedy}, or pick a smaller model."
        )
    return place


def place_of(model: ModelEntry, precision: Precision) -> Placement:
    """Return where a model would go, whether it fits or not."""
    device = "cuda" if torch.cuda.is_available() and not zero_gpu.waits() else "cpu"
    wanted = precision if precision != "auto" else "nf4" if device == "cuda" else model.cpu_precision
    # A ZeroGPU process loads the model in the type that its later GPU uses.
    dtype = torch.float32 if wanted == "fp32" else default_dtype("cuda" if zero_gpu.waits() else device)
    if wanted == "bf16":
        wanted = {torch.float32: "fp32", torch.float16: "fp16"}.get(dtype, wanted)
    if zero_gpu.waits():
        return Placement(device, wanted, dtype)
    return Placement(device, wanted, dtype, _notice(device, wanted, precision), unused_gpu())


def load_model(
    path: Path,
    place: Placement,
    remedy: str,
    progress: Callable[[int, int], None],
    device: str | None = None,
    device_map: str | None = None,
    model_class: Any = AutoModelForCausalLM,
    config: MoeConfig | None = None,
) -> Any:
    """Load the model in a folder at its place, on another device or over several; a missing head is initialized.

    Raises:
        StudioError: the files can't be loaded, or memory ran out. For memory, the message suggests closing other
            programs, or `remedy`.
    """
    if place.device != "cpu":
        # cuDNN's attention makes a plan for every length of a prompt. Flash attention needs none.
        torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        with shortage(f"while loading: close other programs, or {remedy}"):
            return load(
                model_class,
                path,
                quantization="nf4" if place.precision == "nf4" else None,
                dtype=place.dtype,
                device=device or place.device,
                device_map=device_map,
                config=config,
                progress=progress,
            )
    except (CheckpointError, RuntimeError) as error:
        raise StudioError(str(error)) from error


def default_dtype(device: str) -> torch.dtype:
    """Return bf16 if the processor multiplies it natively, because emulated bf16 is slower.

    Otherwise, return fp16 for a GPU (before Ampere) and fp32 for a CPU.
    """
    if device != "cpu":
        return torch.bfloat16 if zero_gpu.waits() else sixteen_bits(device)
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


@contextmanager
def shortage(when: str) -> Iterator[None]:
    """Turn out-of-memory errors into a StudioError: "This machine ran out of memory <when>."."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # The CPU allocator raises a plain RuntimeError.
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "can't allocate memory" not in str(error):
            raise
        torch.cuda.empty_cache()
        raise StudioError(f"This machine ran out of memory {when}.") from error


def needed_gib(model: ModelEntry, place: Placement) -> float:
    """Return the memory that a model needs for chat, in GiB."""
    if place.precision == "nf4":
        return model.needs_gib["nf4"]
    return model.needs_gib["bf16"] * (2 if place.precision == "fp32" else 1)


def free_gib(place: Placement) -> float:
    """Return the free memory of the place: that of the machine, or of all its GPUs together."""
    if place.device == "cpu":
        return plan.available_memory() / GIB
    return sum(torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count())) / GIB


def unused_gpu() -> str:
    """Return a sentence if this machine has an NVIDIA GPU that torch can't use; empty otherwise."""
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if zero_gpu.ACTIVE or is_hidden or torch.cuda.is_available() or not any(NVIDIA.glob("nvidia[0-9]*")):
        return ""
    where = "This Space" if demo.space_id() else "This machine"
    cuda = torch.version.cuda
    built = f"for CUDA {cuda}, which the driver may be too old for" if cuda else "without CUDA"
    return f"{where} has a GPU that torch can't use: torch {torch.__version__} is built {built}. Install another build."


def _notice(device: str, used: str, wanted: str) -> str:
    if device == "cpu" and used == "fp32" and wanted != "fp32":
        return "This processor has no native bf16, so it computes in 32 bits."
    if device == "cpu" and used == "nf4" and not nf4_cpu.supported():
        return "This processor has no AVX512-BF16, so 4-bit weights are dequantized for every token, which is slow."
    return ""
