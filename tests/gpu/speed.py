"""Steps that measure the card and single products, at the shape of JetMoE-8B."""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jetmoe.experts import products
from jetmoe.experts.products import gathered_nf4_linear
from jetmoe.nf4.parts import BYTES_PER_WEIGHT
from jetmoe.nf4.tensor import quantize
from jetmoe.nf4.triton import chosen_linear
from tests.gpu.place import Place, row, table

PACKAGES = ("torch", "triton", "transformers", "peft", "accelerate", "bitsandbytes")


def facts(place: Place) -> None:
    """Versions, the card, and its speed at copying and multiplying."""
    table("fact", "value")
    row("Python", lambda: [platform.python_version()])
    for name in PACKAGES:
        row(name, lambda name=name: [_version(name)])
    if not place.is_toy:
        card = torch.cuda.get_device_properties(0)
        row("card", lambda: [f"{card.name}, {card.total_memory / 2**30:.1f} GiB, capability {card.major}.{card.minor}"])
        row("cards", lambda: [torch.cuda.device_count()])
    row("copy, GB/s read and written", partial(_bandwidth, place))
    row("bf16 products, TFLOP/s", partial(_products, place))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _bandwidth(place: Place) -> list[Any]:
    source = torch.ones(2**16 if place.is_toy else 2**30, dtype=torch.uint8, device=place.device)
    target = torch.empty_like(source)
    return [2 * source.nbytes / place.ms(lambda: target.copy_(source)) / 1e6]


def _products(place: Place) -> list[Any]:
    size = 64 if place.is_toy else 8192
    matrix = torch.randn(size, size, dtype=torch.bfloat16, device=place.device)
    return [2 * size**3 / place.ms(lambda: matrix @ matrix) / 1e9]


def kernels(place: Place) -> None:
    """Products with experts: one token with two experts, and 2,048 tokens. Microseconds; GB/s of the weights read."""
    table("out x in", "product", "µs", "GB/s")
    for rows, columns in place.projections:
        weight = torch.randn(8, rows, columns, dtype=torch.bfloat16, device=place.device)
        measured = [*_plain_products(place, weight), *_four_bit_products(place, weight)]
        for name, call, nbytes in measured:
            row(f"{rows} x {columns} | {name}", partial(_timed, place, call, nbytes))


def _timed(place: Place, call: Callable[[], Any], nbytes: float) -> list[Any]:
    ms = place.ms(call, 20)
    return [1000 * ms, nbytes / ms / 1e6]


def _plain_products(place: Place, weight: Tensor) -> list[tuple[str, Callable[[], Any], float]]:
    experts = torch.tensor([1, 6], device=place.device)
    tokens = torch.randn(2, weight.shape[2], dtype=torch.bfloat16, device=place.device)
    prompt, ends = _prompt(place, weight)
    few = torch.tensor([0, 1, 1, 1, 1, 1, 2, 2], dtype=torch.int32, device=place.device)
    fused = torch.compile(_fused, dynamic=False, **place.compiler)
    return [
        ("one token, gathered bmm", lambda: torch.bmm(weight[experts], tokens.unsqueeze(2)), weight.nbytes / 4),
        ("one token, grouped", lambda: F.grouped_mm(tokens, weight.transpose(1, 2), offs=few), weight.nbytes / 4),
        ("one token, compiled sums", lambda: fused(weight, tokens, experts), weight.nbytes / 4),
        ("prompt, grouped", lambda: F.grouped_mm(prompt, weight.transpose(1, 2), offs=ends), weight.nbytes),
    ]


def _fused(weight: Tensor, rows: Tensor, experts: Tensor) -> Tensor:
    return (weight[experts].float() * rows.float().unsqueeze(1)).sum(-1).to(rows.dtype)


def _four_bit_products(place: Place, weight: Tensor) -> list[tuple[str, Callable[[], Any], float]]:
    parts = cache(lambda: quantize(weight).parts)  # made inside a row, which may lack bitsandbytes
    experts = torch.tensor([1, 6], device=place.device)
    tokens = torch.randn(2, weight.shape[2], dtype=torch.bfloat16, device=place.device)
    prompt, ends = _prompt(place, weight)
    size = weight.numel() * BYTES_PER_WEIGHT
    triton = [("4 bits, one token, Triton", lambda: chosen_linear(tokens, experts, parts()), size / 4)]
    return [
        ("4 bits, one token, gathered", lambda: gathered_nf4_linear(tokens, experts, parts()), size / 4),
        *(triton if not place.is_toy else []),
        ("4 bits, dequantize all", lambda: parts().dequantize(torch.bfloat16), size + weight.nbytes),
        ("4 bits, prompt", lambda: products._GroupedNF4Linear.apply(prompt, ends, *parts()), size),
        ("4 bits, prompt, expert by expert", lambda: _expert_by_expert(prompt, parts()), size),
    ]


def _prompt(place: Place, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted rows of a prompt whose tokens have two experts each, evenly."""
    count = 64 if place.is_toy else 4096
    rows = torch.randn(count, weight.shape[2], dtype=torch.bfloat16, device=place.device)
    return rows, torch.arange(1, 9, dtype=torch.int32, device=place.device) * (count // 8)


def _expert_by_expert(rows: Tensor, parts: Any) -> Tensor:
    return torch.cat([products._nf4_linear(part, parts.expert(e)) for e, part in enumerate(rows.chunk(8))])
