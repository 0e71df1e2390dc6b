"""`torch.compile`, `torch.export`, tracing and ONNX."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks.compatibility.names import OTHER, OTHERS
from tests.benchmarks.compatibility.place import (
    BATCH,
    FEW,
    PADDED,
    Place,
    Results,
    adapt,
    fill,
    forward_and_backward,
    gradients,
    logits,
    lora,
    lora_on_all,
)
from tests.benchmarks.compatibility.registry import row
from tests.benchmarks.compatibility.rows.execution import adapted_model

GROUP = "Execution"


def compiled(place: Place, adapter: bool = True, train: bool = False, ids: Tensor = BATCH, **options) -> Results:
    torch._dynamo.reset()
    # One layer, because compilers take seconds for each.
    model = adapted_model(place, "shallow") if adapter else place.model("shallow")
    made = torch.compile(model, **options)
    if train:
        expected = forward_and_backward(model, ids)
        model.zero_grad()
        output = made(input_ids=ids, labels=ids)
        output.loss.backward()
        results = {"loss": output.loss.detach(), "logits": output.logits.detach()} | gradients(model)
        return results | {f"{name}.expected": one for name, one in expected.items()}
    with torch.no_grad():
        results = {"logits": made(input_ids=ids).logits.clone()}
    return results | {"logits.expected": logits(model, ids)}


# Traced, and run without Inductor, whose code takes most of the time to make.
TRACED: dict[str, Any] = {"backend": "aot_eager"}
COMPILED: dict[str, dict[str, Any]] = {
    "a batch": {**TRACED, "adapter": False},
    "a batch, LoRA": TRACED,
    "a few tokens, LoRA": {**TRACED, "ids": FEW},
    "fullgraph": {**TRACED, "adapter": False, "fullgraph": True},
    "fullgraph, LoRA": {**TRACED, "fullgraph": True},
    "fullgraph, a few tokens, LoRA": {**TRACED, "fullgraph": True, "ids": FEW},
    "dynamic, LoRA": {**TRACED, "dynamic": True},
    "forward and backward of all weights": {**TRACED, "adapter": False, "train": True},
    "forward and backward, LoRA": {**TRACED, "train": True},
    "Inductor, a batch, LoRA": {},
    "Inductor, a few tokens, LoRA": {"ids": FEW},
    "Inductor, forward and backward, LoRA": {"train": True},
}
for name, options in COMPILED.items():
    bits = name in ("a batch, LoRA", "fullgraph, a few tokens, LoRA")
    row(GROUP, f"torch.compile, {name}", tolerance=1e-4, four_bits=bits)(
        partial(lambda place, options: compiled(place, **options), options=options)
    )


@row(GROUP, "torch.compile before any eager pass, then moved adapters", tolerance=1e-4, four_bits=True)
def compiled_then_changed(place: Place) -> Results:
    """What the graph holds of the adapter must follow it: steps, scales, disabling, another adapter."""
    model = adapted_model(place, "shallow")
    model.add_adapter("two", lora_on_all())
    model.set_adapter("two")
    fill(model, 0.15, "two")
    model.set_adapter("default")
    made = torch.compile(model.eval(), **TRACED)
    results: Results = {}

    @torch.no_grad()
    def ask(name: str) -> None:
        results[name] = made(input_ids=FEW).logits.clone()
        results[f"{name}.expected"] = logits(model, FEW)

    ask("first")
    with torch.no_grad():
        for key, one in model.named_parameters():
            if ".default" in key and "lora_B" in key:
                one.mul_(1.5)
    ask("scaled in place")
    for key, one in model.named_parameters():
        if ".default" in key and "lora_B" in key:
            one.data = one.data * 1.5
    ask("replaced through .data")
    model.set_adapter("two")
    ask("another adapter")
    with model.disable_adapter():
        ask("disabled")
    ask("enabled again")
    if not place.four_bits:  # 4-bit experts are merged by `jetmoe.adapters.merge` alone
        model.merge_adapter()
        ask("merged")
        model.unmerge_adapter()
        ask("unmerged")
    return results


@row(GROUP, "torch.compile, disable_adapter from the first call", tolerance=1e-4)
def compiled_disabled(place: Place) -> Results:
    model = adapted_model(place, "shallow")
    made = torch.compile(model, **TRACED)
    results: Results = {}
    with torch.no_grad():
        with model.disable_adapter():
            results["disabled"] = made(input_ids=FEW).logits.clone()
        results["enabled"] = made(input_ids=FEW).logits.clone()
    with model.disable_adapter():
        results["disabled.expected"] = logits(model, FEW)
    return results | {"enabled.expected": logits(model, FEW)}


@row(GROUP, "torch.compile, trained in the graph for three steps", tolerance=1e-4, four_bits=True)
def compiled_training(place: Place) -> Results:
    results: Results = {}
    for compile_it in (False, True):
        model = adapted_model(place, "shallow").train()
        made = torch.compile(model, **TRACED) if compile_it else model
        optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
        losses = []
        for _ in range(3):
            loss = made(input_ids=BATCH, labels=BATCH, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        results["losses" if compile_it else "losses.expected"] = torch.stack(losses)
        if compile_it:
            results["few"] = logits(model.eval(), FEW)
        else:
            results["few.expected"] = logits(model.eval(), FEW)
    return results


for name, config in {
    "DoRA": lora(use_dora=True),
    "lora_bias": lora(lora_bias=True),
    OTHERS: lora(target_modules=[OTHER]),
}.items():

    def compiled_tuner(place: Place, config: Any) -> Results:
        model = adapt(place.model("shallow"), copy.deepcopy(config))
        with torch.no_grad():
            made = torch.compile(model, **TRACED)(input_ids=FEW).logits.clone()
        return {"logits": made, "logits.expected": logits(model, FEW)}

    row(GROUP, f"torch.compile, {name}", tolerance=1e-4)(partial(compiled_tuner, config=config))


@row(GROUP, "model.compile() of a module in place", tolerance=1e-4)
def compiled_in_place(place: Place) -> Results:
    model = adapted_model(place)
    expected = logits(model)
    for layer in model.get_base_model().model.layers:
        layer.compile(**TRACED)
    return {"logits": logits(model), "few": logits(model, FEW), "logits.expected": expected}


def exported(place: Place, strict: bool, dynamic: bool, adapter: bool) -> Results:
    model = (adapted_model(place, "shallow") if adapter else place.model("shallow")).requires_grad_(False)
    shapes = {"input_ids": {1: torch.export.Dim("length", min=4, max=64)}} if dynamic else None
    with torch.no_grad():
        program = torch.export.export(
            _LogitsOnly(model), (), {"input_ids": BATCH}, strict=strict, dynamic_shapes=shapes
        )
        made = program.module()(input_ids=BATCH)
        results = {"logits": made, "logits.expected": logits(model)}
        if dynamic:
            results |= {
                "longer": program.module()(input_ids=BATCH.repeat(1, 2)),
                "longer.expected": logits(model, BATCH.repeat(1, 2)),
            }
    return results


class _LogitsOnly(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, use_cache=False).logits


for strict in (False, True):
    for dynamic in (False, True):
        for adapter in (False, True):
            name = f"torch.export, strict={strict}{', dynamic length' * dynamic}{', LoRA' * adapter}"
            row(GROUP, name, tolerance=1e-4, four_bits=not strict and not dynamic)(
                partial(exported, strict=strict, dynamic=dynamic, adapter=adapter)
            )


@row(GROUP, "torch.export of a classifier", tolerance=1e-4)
def exported_classifier(place: Place) -> Results:
    model = place.classifier().requires_grad_(False)
    with torch.no_grad():
        program = torch.export.export(
            model, (), {"input_ids": BATCH, "attention_mask": PADDED, "use_cache": False}, strict=False
        )
        made = program.module()(input_ids=BATCH, attention_mask=PADDED, use_cache=False).logits
    return {"logits": made, "logits.expected": logits(model, attention_mask=PADDED)}


@row(GROUP, "torch.jit.trace", tolerance=1e-4)
def traced(place: Place) -> Results:
    model = place.model().requires_grad_(False)
    with torch.no_grad():
        made = torch.jit.trace(_LogitsOnly(model), (BATCH,), check_trace=False)(BATCH)
    return {"logits": made, "logits.expected": logits(model)}


@row(GROUP, "torch.onnx.export")
def onnx(place: Place) -> Results:
    import io

    torch.onnx.export(_LogitsOnly(place.model()), (BATCH,), io.BytesIO(), dynamo=True)
    return {"done": torch.ones(1)}
