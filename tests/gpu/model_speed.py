"""Steps that measure models of the shape of JetMoE-8B: decoding, attention, prompts, training, several cards."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

import peft
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import StaticCache

from jetmoe.decode import CapturedStep, compiled_step, step
from jetmoe.experts import products
from jetmoe.lora import lora_config
from studio.backend.training import gpu_memory
from tests.gpu.place import Place, row, table

WEIGHTS = ["bf16", "nf4", "nf4 with Triton"]
CACHE = 2048


def four_layers(place: Place) -> None:
    """A decoding step of four layers."""
    _decoding(place, 4)


def decoding(place: Place) -> None:
    """A decoding step of the whole model."""
    _decoding(place, 24)


def _decoding(place: Place, layers: int) -> None:
    table("weights", "step", "ms", "tokens/s", "kernels", "peak GiB")
    for weights in WEIGHTS:
        model: list[Any] = []  # made inside a row, so that its error is in the table
        for kind in ("eager", "compiled", "captured"):
            row(f"{weights} | {kind}", partial(_step, place, weights, layers, kind, model))


def _step(place: Place, weights: str, layers: int, kind: str, made: list[Any]) -> list[Any]:
    with _triton("Triton" in weights and not place.is_toy), torch.no_grad():
        model = made[0] if made else place.model(weights, layers)
        made[:] = [model]
        torch.compiler.reset()
        compiled = compiled_step(model, **place.compiler) if kind != "eager" else None
        runs: dict[str, Any] = {"eager": partial(step, model), "captured": compiled}
        runs["compiled"] = compiled._run if isinstance(compiled, CapturedStep) else compiled
        decode = _decoder(place, model, runs[kind])
        place.peak_gib()
        ms = place.ms(decode, 20)
        return [ms, 1000 / ms, len(place.kernels(decode)), place.peak_gib()]


def _decoder(place: Place, model: Any, run: Any) -> Callable[[], Tensor]:
    """Return a function that decodes the next token after a short prompt."""
    cache = StaticCache(config=model.config, max_cache_len=64 if place.is_toy else CACHE)
    model(torch.arange(3, 27, device=place.device).unsqueeze(0), past_key_values=cache)
    positions = count(24)

    def decode() -> Tensor:
        token = torch.tensor([[5]], device=place.device)
        return run(token, torch.tensor([[next(positions)]], device=place.device), cache)

    return decode


@contextmanager
def _triton(wanted: bool) -> Iterator[None]:
    before = products.USE_TRITON
    products.USE_TRITON = wanted
    try:
        yield
    finally:
        products.USE_TRITON = before


def attention(place: Place) -> None:
    """Attention of one layer over a prompt: forward and backward milliseconds, and the kernel that takes longest."""
    table("tokens", "attention", "ms", "peak GiB", "kernel")
    for length in place.lengths:
        query = torch.randn(1, 32, length, 128, dtype=torch.bfloat16, device=place.device, requires_grad=True)
        key = torch.randn(1, 16, length, 128, dtype=torch.bfloat16, device=place.device, requires_grad=True)
        mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=place.device).tril()
        for name, call in {
            "causal, grouped": partial(_attend, query, key, is_causal=True, enable_gqa=True),
            "mask, grouped": partial(_attend, query, key, attn_mask=mask, enable_gqa=True),
            "mask, repeated keys": partial(_repeated, query, key, mask),
        }.items():
            row(f"{length} | {name}", partial(_attention, place, call))


def _attend(query: Tensor, key: Tensor, **options: Any) -> None:
    F.scaled_dot_product_attention(query, key, key, **options).sum().backward()


def _repeated(query: Tensor, key: Tensor, mask: Tensor) -> None:
    _attend(query, key.repeat_interleave(2, dim=1), attn_mask=mask)


def _attention(place: Place, call: Callable[[], None]) -> list[Any]:
    place.peak_gib()
    ms = place.ms(call, 5)
    name, _ = max(place.kernels(call), key=lambda kernel: kernel[1])
    return [ms, place.peak_gib(), f"`{name[:60]}`"]


def prompts(place: Place) -> None:
    """Reading a prompt with the whole model, in one piece and in pieces of 512 tokens."""
    table("weights", "tokens", "in pieces of", "ms", "tokens/s", "kernels", "peak GiB")
    for weights in ("bf16", "nf4"):
        model: list[Any] = []
        for length in place.lengths:
            for piece in sorted({min(length, place.lengths[0]), length}):
                row(f"{weights} | {length} | {piece}", partial(_prompt, place, weights, length, piece, model))


@torch.no_grad()
def _prompt(place: Place, weights: str, length: int, piece: int, made: list[Any]) -> list[Any]:
    model = made[0] if made else place.model(weights)
    made[:] = [model]
    ids = torch.randint(3, 90, (1, length), device=place.device)

    def read() -> None:
        cache = StaticCache(config=model.config, max_cache_len=length)
        for start in range(0, length, piece):
            model(ids[:, start : start + piece], past_key_values=cache, logits_to_keep=1)

    place.peak_gib()
    ms = place.ms(read, 3)
    return [ms, 1000 * length / ms, len(place.kernels(read)), place.peak_gib()]


def training(place: Place) -> None:
    """A LoRA of rank 16 on all experts, 2,048 tokens, with checkpointing. "Busy" is the kernels' share of the time."""
    table("weights", "ms", "tokens/s", "kernels", "busy", "forecast GiB", "peak GiB")
    row("nf4", partial(_training, place, "nf4"))
    row("bf16", partial(_training, place, "bf16"))


def _training(place: Place, weights: str) -> list[Any]:
    model = place.model(weights)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    adapted = peft.get_peft_model(model, lora_config("all", r=16, family="jetmoe")).train()
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    ids = torch.randint(3, 90, (1, place.lengths[1]), device=place.device)

    def backward() -> None:
        adapted(input_ids=ids, labels=ids, use_cache=False, skip_logits=True).loss.backward()

    place.peak_gib()
    backward()
    forecast = 0.0
    if not place.is_toy:
        forecast = gpu_memory.needed_and_free(sum(parameter.numel() for parameter in trained))[0] / 2**30
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def train() -> None:
        backward()
        optimizer.step()
        optimizer.zero_grad()

    place.peak_gib()
    ms = place.ms(train, 3)
    peak = place.peak_gib()
    start = time.perf_counter()
    kernels = place.kernels(train)
    busy = sum(us for _, us in kernels) / 1e6 / (time.perf_counter() - start)
    return [ms, 1000 * ids.numel() / ms, len(kernels), busy, forecast, peak]


def several(place: Place) -> None:
    """A toy in 4 bits on two cards: spread over both, and copied to both (DDP)."""
    table("check", "result")
    if not place.is_toy and torch.cuda.device_count() < 2:
        print("| several cards | there is one |")
        return
    row("spread", partial(_spread, place))
    row("DDP in 4 bits", partial(_launch, place))


def _spread(place: Place) -> list[Any]:
    from jetmoe.loading.devices import dispatch_model

    model = place.model("bf16", 2)
    ids = torch.randint(3, 90, (1, 24), device=place.device)
    with torch.no_grad():
        expected = model(ids).logits
        other = "cpu" if place.is_toy else "cuda:1"
        parts = {"model.embed_tokens": place.device, "model.layers": other, "model.norm": other}
        for name, device in parts.items():
            model.get_submodule(name).to(device)
        spread = dispatch_model(model, {name: torch.device(device) for name, device in parts.items()})
        return [float((spread(ids).logits.to(expected.device) - expected).abs().max())]


def _launch(place: Place) -> list[Any]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "tests.gpu.two_cards"]
    done = subprocess.run([*command, place.device], capture_output=True, text=True, timeout=25, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return [done.stdout.strip().splitlines()[-1]]
