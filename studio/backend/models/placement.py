"""Where a model goes and in what precision, what it takes there, and what to say when that is too much."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import psutil
import torch

from jetmoe import JetMoeConfig, JetMoeForCausalLM, single_query
from jetmoe.loading.checkpoint import CheckpointError
from jetmoe.loading.load import load
from jetmoe.nf4 import cpu as nf4_cpu
from studio.backend.hosting import demo
from studio.backend.models import catalog
from studio.backend.models.catalog import ModelEntry
from studio.backend.system import zero_gpu
from studio.errors import StudioError

Precision = Literal["auto", "nf4", "bf16", "fp32"]
GIB = 2**30


@dataclass(frozen=True)
class Placement:
    device: str
    precision: str
    """"nf4", "bf16" or "fp32"."""
    dtype: torch.dtype
    """Of everything that is not in 4 bits."""
    notice: str = ""
    """A sentence where this machine makes something slower than elsewhere."""


def first_model() -> str:
    """What a studio loads when it starts: `$STUDIO_MODEL`; without it JetMoE 8B Chat on a Space with a GPU, and the
    starter elsewhere, where nobody asked for a download of 16 GiB."""
    on_gpu_space = demo.space_id() is not None and torch.cuda.is_available()
    return os.environ.get("STUDIO_MODEL") or (catalog.CHAT_8B if on_gpu_space else catalog.STARTER.id)


def check_precision(precision: str) -> None:
    """Raises StudioError for one that is not known."""
    if precision not in get_args(Precision):
        raise StudioError(f"There is no precision {precision!r}; pick one of {', '.join(get_args(Precision))}.")


def placement(model: ModelEntry, precision: Precision) -> Placement:
    """On a GPU where there is one.

    Raises:
        StudioError: it does not fit into this machine's memory; the message has the numbers.
    """
    device = "cuda" if torch.cuda.is_available() and not zero_gpu.waits() else "cpu"
    wanted = precision if precision != "auto" else "nf4" if device == "cuda" else model.cpu_precision
    # What waits here for a GPU to come is held as the GPU wants it.
    dtype = torch.float32 if wanted == "fp32" else default_dtype("cuda" if zero_gpu.waits() else device)
    if wanted == "bf16" and dtype == torch.float32:
        wanted = "fp32"
    if device == "cpu":
        _check_memory(model, wanted)
    return Placement(device, wanted, dtype, "" if zero_gpu.waits() else _notice(device, wanted, precision))


def load_model(
    path: Path,
    place: Placement,
    remedy: str,
    progress: Callable[[int, int], None],
    device: str | None = None,
    device_map: str | None = None,
    model_class: Any = JetMoeForCausalLM,
    config: JetMoeConfig | None = None,
) -> Any:
    """The model in that folder, in its place, or on another device, or over several; a head that it lacks is new.

    Raises:
        StudioError: files or memory don't suffice; where it is memory, to close other programs or `remedy`.
    """
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
    """bf16 where the processor multiplies it natively; elsewhere fp32, because emulated bf16 is slower."""
    if device != "cpu" or torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32


@contextmanager
def shortage(when: str) -> Iterator[None]:
    """Turns running out of memory into a StudioError: "... ran out of memory <when>."."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # The CPU's allocator has no error class of its own.
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "can't allocate memory" not in str(error):
            raise
        torch.cuda.empty_cache()
        raise StudioError(f"This machine ran out of memory {when}.") from error


def _check_memory(model: ModelEntry, precision: str) -> None:
    needed = (
        model.needs_gib["nf4"] if precision == "nf4" else model.needs_gib["bf16"] * (2 if precision == "fp32" else 1)
    )
    free = psutil.virtual_memory().available / GIB
    if needed > free:
        remedy = "close other programs" if precision == "nf4" else "load it in nf4"
        raise StudioError(
            f"{model.title} in {precision} needs {needed:.1f} GiB of memory and {free:.1f} GiB are free: {remedy}, "
            "or pick a smaller model."
        )


def _notice(device: str, used: str, wanted: str) -> str:
    if device == "cpu" and used == "fp32" and wanted != "fp32":
        return "This processor has no native bf16, so it computes in 32 bits."
    if device == "cpu" and used == "nf4" and not nf4_cpu.supported():
        return "This processor has no AVX512-BF16, so 4-bit weights are unpacked for every token, which is slow."
    if device == "cpu" and used != "fp32":
        return (nf4_cpu.problem() if used == "nf4" else "") or single_query.problem()
    return ""
