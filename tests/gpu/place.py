"""Where the steps of `check.py` run: on a card with the shape of JetMoE-8B, or at the size of a toy on a CPU."""

from __future__ import annotations

import statistics
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from studio.backend.bench import shapes

TOY = {
    "vocab_size": 99,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "kv_channels": 32,
    "intermediate_size": 64,
    "num_local_experts": 4,
    "max_position_embeddings": 256,
}


@dataclass(frozen=True)
class Place:
    device: str
    """"cuda", or "cpu" for a toy."""

    @property
    def is_toy(self) -> bool:
        return self.device == "cpu"

    @property
    def projections(self) -> list[tuple[int, int]]:
        """The expert projections of a layer, out x in."""
        return [(128, 64), (64, 64)] if self.is_toy else [(11264, 2048), (2048, 5632), (2048, 2048)]

    @property
    def lengths(self) -> list[int]:
        """Lengths of prompts."""
        return [16, 32] if self.is_toy else [512, 2048, 4096]

    @property
    def compiler(self) -> dict[str, Any]:
        """Options of `compiled_step`."""
        return {"backend": "aot_eager"} if self.is_toy else {}

    def model(self, weights: str, layers: int = 24) -> Any:
        """A JetMoE of random weights, made on the device."""
        quantization = "nf4" if "nf4" in weights else None
        changes = TOY if self.is_toy else {"num_hidden_layers": layers}
        return shapes.ours("jetmoe-8b", quantization, torch.bfloat16, self.device, **changes)

    def ms(self, call: Callable[[], Any], repeats: int = 10) -> float:
        """Median milliseconds of a call, after two to warm up; of a single call for a toy."""
        seconds = []
        for _ in range(1 if self.is_toy else repeats + 2):
            start = time.perf_counter()
            call()
            self.synchronize()
            seconds.append(time.perf_counter() - start)
        return 1000 * statistics.median(seconds[2:] or seconds)

    def synchronize(self) -> None:
        if not self.is_toy:
            torch.cuda.synchronize()

    def peak_gib(self) -> float:
        """Peak of allocated memory since the last call; 0 on a CPU."""
        if self.is_toy:
            return 0.0
        peak = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
        return peak

    @contextmanager
    def no_waits(self):
        """Raise an error if anything inside the block waits for the card."""
        if not self.is_toy:
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            if not self.is_toy:
                torch.cuda.set_sync_debug_mode("default")

    def kernels(self, call: Callable[[], Any]) -> list[tuple[str, float]]:
        """Names and microseconds of the kernels of a call; of a CPU's operations for a toy."""
        kind = torch.profiler.ProfilerActivity.CPU if self.is_toy else torch.profiler.ProfilerActivity.CUDA
        self.synchronize()
        with torch.profiler.profile(activities=[kind]) as profile:
            call()
            self.synchronize()
        events = profile.events() or []
        wanted = torch.autograd.DeviceType.CPU if self.is_toy else torch.autograd.DeviceType.CUDA
        return [(event.name, event.device_time or event.cpu_time) for event in events if event.device_type == wanted]


def table(*columns: str) -> None:
    print(f"\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", flush=True)


def row(name: str, call: Callable[[], list[Any]]) -> None:
    """Print a row of a table, or the error; the other rows follow either way."""
    try:
        cells = [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in call()]
    except Exception as error:  # whatever it is, the next row is worth its time
        cells = [f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:300]}"]
        traceback.print_exc()
    print(f"| {name} | {' | '.join(cells)} |", flush=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
