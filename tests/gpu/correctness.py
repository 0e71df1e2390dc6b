"""Steps that compare a toy on the card with the same toy on the CPU."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import peft
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, StaticCache

import jetmoe  # noqa: F401  registers the classes
from jetmoe.decode import compiled_step, step
from jetmoe.device import has_grouped_mm
from jetmoe.experts.assignments import Routing
from jetmoe.experts.experts import Experts
from jetmoe.experts.products import sorted_product
from jetmoe.lora import lora_config
from jetmoe.nf4.tensor import quantize
from tests.gpu.place import TOY, Place, row, table

# Every expert is selected, so that no rounding selects another.
TOYS: dict[str, dict[str, Any]] = {
    "jetmoe": {**TOY, "num_experts_per_tok": 4, "initializer_range": 0.1},
    "olmoe": {
        **{name: value for name, value in TOY.items() if name not in ("kv_channels", "num_local_experts")},
        "num_attention_heads": 4,
        "num_experts": 4,
        "num_experts_per_tok": 4,
        "initializer_range": 0.1,
    },
}
WEIGHTS = ["bf16", "nf4", "double nf4"]


def toys(place: Place) -> None:
    """Outputs, gradients and decoding steps in bf16 and in 4 bits. Errors are relative to the largest value."""
    table("toy", "prompt", "three tokens", "gradients", "decoding", "compiled decoding")
    for family in TOYS:
        for weights in WEIGHTS:
            row(f"{family}, {weights}", partial(_toy, place, family, weights))


def _toy(place: Place, family: str, weights: str) -> list[Any]:
    here = toy(family, weights)
    there = copy.deepcopy(here).to(place.device)
    ids = torch.randint(3, 99, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        prompts = [_error(there(one.to(place.device)).logits, here(one).logits) for one in (ids, ids[:1, :3])]
        decoded = _decoded(there, partial(step, there))
        compiled = _error(_decoded(there, compiled_step(there, **place.compiler)), decoded)
        decoding = _error(decoded, _decoded(here, partial(step, here)))
    ours, theirs = (_gradients(model, ids) for model in (there, here))
    gradients = max(_error(ours[name], theirs[name]) for name in theirs)
    errors = [*prompts, gradients, decoding, compiled]
    if max(errors) > 0.1:
        raise AssertionError(f"errors above 0.1: {errors}")
    return errors


def toy(family: str, weights: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**TOYS[family], **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, Experts) and "nf4" in weights:
            for name in module.tensors:
                weight = quantize(getattr(module, name).data, double="double" in weights)
                setattr(module, name, torch.nn.Parameter(weight, requires_grad=False))
    return model


@torch.no_grad()
def _decoded(model: Any, run: Any) -> Tensor:
    """Logits of seven steps after a prompt."""
    cache = StaticCache(config=model.config, max_cache_len=32)
    device = model.lm_head.weight.device
    model(torch.arange(3, 12, device=device).unsqueeze(0), past_key_values=cache)
    tokens = [(torch.tensor([[5 + i]], device=device), torch.tensor([[9 + i]], device=device)) for i in range(7)]
    return torch.stack([run(token, position, cache) for token, position in tokens])


def _gradients(model: Any, ids: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(0)
    config = lora_config("all", r=8, family=model.config.model_type)
    adapted = peft.get_peft_model(copy.deepcopy(model).cpu(), config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted = adapted.to(model.lm_head.weight.device).train()
    ids = ids.to(model.lm_head.weight.device)
    adapted(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {name: one.grad for name, one in adapted.named_parameters() if one.grad is not None}


def _error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference relative to the largest value."""
    ours, theirs = ours.detach().float().cpu(), theirs.detach().float().cpu()
    return float((ours - theirs).abs().max() / theirs.abs().max())


def details(place: Place) -> None:
    """What only a card can show."""
    table("check", "error")
    row("decoding in bf16 never waits for the card", partial(_waits, place, "bf16"))
    row("decoding in 4 bits never waits for the card", partial(_waits, place, "nf4"))
    row("a prompt in 4 bits never waits for the card", partial(_prompt_waits, place))
    row("an expert without tokens, 4 bits", partial(_idle_expert, place, False))
    row("an expert without tokens, double 4 bits", partial(_idle_expert, place, True))
    if not place.is_toy:
        row("Triton", partial(_triton, place, False))
        row("Triton, double 4 bits", partial(_triton, place, True))
        row("Triton in a CUDA graph", partial(_triton_graph, place))


def _waits(place: Place, weights: str) -> list[Any]:
    model = toy("jetmoe", weights).to(place.device)
    with torch.no_grad():
        cache = StaticCache(config=model.config, max_cache_len=32)
        ids = torch.randint(3, 99, (1, 24)).to(place.device)
        model(ids, past_key_values=cache)
        token, position = torch.tensor([[5]]).to(place.device), torch.tensor([[24]]).to(place.device)
        step(model, token, position, cache)
        with place.no_waits():
            step(model, token, position + 1, cache)
    return ["none"]


def _prompt_waits(place: Place) -> list[Any]:
    model = toy("jetmoe", "nf4").to(place.device)
    ids = torch.randint(3, 99, (1, 24)).to(place.device)
    if not has_grouped_mm(model.lm_head.weight):
        return ["not on this card, where a loop over experts needs their numbers of tokens"]
    with torch.no_grad():
        model(ids, use_cache=False)
        with place.no_waits():
            model(ids, use_cache=False)
    return ["none"]


def _idle_expert(place: Place, double: bool) -> list[Any]:
    torch.manual_seed(0)
    parts = quantize(torch.randn(4, 64, 128, device=place.device, dtype=torch.bfloat16), double).parts
    rows = torch.randn(40, 128, device=place.device, dtype=torch.bfloat16)
    experts = torch.tensor([0, 3], device=place.device).repeat_interleave(20).view(-1, 1)
    routing = Routing(torch.zeros(40, 4, device=place.device), experts, torch.ones(40, 1, device=place.device))
    weight = parts.dequantize(torch.bfloat16)
    expected = torch.cat([rows[:20] @ weight[0].t(), rows[20:] @ weight[3].t()])
    return [_error(sorted_product(parts, None, rows, routing), expected)]


def _chosen(place: Place, double: bool) -> tuple:
    torch.manual_seed(0)
    parts = quantize(torch.randn(4, 512, 1024, device=place.device, dtype=torch.bfloat16), double).parts
    rows = torch.randn(2, 1024, device=place.device, dtype=torch.bfloat16)
    return parts, rows, torch.tensor([1, 3, 0, 1], device=place.device)


def _plain(parts: Any, rows: Tensor, experts: Tensor) -> Tensor:
    weight = parts.dequantize(torch.float32)
    return torch.stack([weight[e] @ rows[a // 2].float() for a, e in enumerate(experts.tolist())])


def _triton(place: Place, double: bool) -> list[Any]:
    from jetmoe.nf4 import triton

    parts, rows, experts = _chosen(place, double)
    return [_error(triton.chosen_linear(rows, experts, parts), _plain(parts, rows, experts))]


def _triton_graph(place: Place) -> list[Any]:
    from jetmoe.nf4 import triton

    parts, rows, experts = _chosen(place, False)
    triton.chosen_linear(rows, experts, parts)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = triton.chosen_linear(rows, experts, parts)
    experts.copy_(torch.tensor([0, 2, 3, 2]))  # a replay reads the experts again
    graph.replay()
    return [_error(result, _plain(parts, rows, experts))]
