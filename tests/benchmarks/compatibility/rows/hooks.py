"""Hooks on modules, and modules that somebody replaced, changed or parametrized."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks.compatibility.names import HERE, LINEAR
from tests.benchmarks.compatibility.place import (
    BATCH,
    FEW,
    Place,
    Results,
    forward_and_backward,
    generated,
    logits,
    require_change,
)
from tests.benchmarks.compatibility.registry import row

GROUP = "Execution"


HOOKED = {
    **HERE.hooked,
    "feed-forward layer": "model.layers.0.mlp",
    "decoder layer": "model.layers.0",
    "input_layernorm": "model.layers.0.input_layernorm",
    "final norm": "model.norm",
    "embed_tokens": "model.embed_tokens",
    "lm_head": "lm_head",
    "decoder": "model",
}
LINEARS = [
    label for label, name in HERE.hooked.items() if name.endswith(("proj", ".layer")) and label not in HERE.normed
]


def hooks(place: Place, name: str) -> Results:
    """How often hooks fire for a batch, for a few tokens and in the backward pass, and the first tensor they see."""
    model = place.model("untied")
    module = model.get_submodule(name)
    counts: Counter[str] = Counter()
    seen: dict[str, Tensor] = {}

    def keep(key: str, values: Any) -> None:
        counts[key] += 1
        values = values if isinstance(values, tuple) else (values,)
        tensor = next((one for one in values if isinstance(one, Tensor) and one.is_floating_point()), None)
        if tensor is not None:
            seen.setdefault(key, tensor.detach().clone())

    handles = [
        module.register_forward_pre_hook(lambda module, args: keep("input", args)),
        module.register_forward_hook(lambda module, args, output: keep("output", output)),
        module.register_full_backward_hook(lambda module, before, after: keep("gradient", after)),
    ]
    model(BATCH, labels=BATCH).loss.backward()
    logits(model, FEW)
    for handle in handles:
        handle.remove()
    results: Results = {f"calls of {key}": torch.tensor(counts[key]) for key in ("input", "output", "gradient")}
    if name.endswith(("proj", "layer", "norm", "layernorm", "embed_tokens", "lm_head")):
        results |= {key: one.flatten(0, -2) for key, one in seen.items() if one.ndim > 1}
    return results


for label, name in HOOKED.items():
    row(GROUP, f"hooks on {label}")(partial(hooks, name=name))

for label in (*LINEARS, "feed-forward layer", "decoder layer", "lm_head"):

    def changing_hook(place: Place, name: str) -> Results:
        """A hook that halves an output: for steering, for scaling, and for taking a part out."""
        model = place.model("untied")
        before, few = logits(model), logits(model, FEW)

        def halve(module, args, output):
            return (output[0] * 0.5, *output[1:]) if isinstance(output, tuple) else output * 0.5

        handle = model.get_submodule(name).register_forward_hook(halve)
        results = forward_and_backward(model) | {"few": logits(model, FEW), "generated": generated(model)}
        require_change(before, results["logits"])
        require_change(few, results["few"])
        handle.remove()
        return results | {"removed": logits(model, FEW)}

    row(GROUP, f"a hook that changes the output of {label}", four_bits=False)(
        partial(changing_hook, name=HOOKED[label])
    )


@row(GROUP, f"a module's forward replaced: {LINEAR}", four_bits=False)
def replaced_forward(place: Place) -> Results:
    model = place.model("untied")
    before = logits(model)
    layer = model.get_submodule(HOOKED[LINEAR])
    forward = layer.forward
    layer.forward = lambda rows: forward(rows) * 0.5
    results = {"logits": logits(model), "few": logits(model, FEW)}
    require_change(before, results["logits"])
    return results


class Scaled(torch.nn.Linear):
    def forward(self, rows: Tensor) -> Tensor:
        return super().forward(rows) * 0.5


for label in (LINEARS[0], LINEARS[-1], "lm_head"):

    def replaced_module(place: Place, name: str) -> Results:
        """By a subclass of Linear, as quantizers and others do."""
        model = place.model("untied")
        old = model.get_submodule(name)
        new = Scaled(old.in_features, old.out_features, bias=False)
        new.weight = old.weight
        model.set_submodule(name, new)
        return forward_and_backward(model) | {"few": logits(model, FEW)}

    row(GROUP, f"a module replaced by a subclass of Linear: {label}")(partial(replaced_module, name=HOOKED[label]))


@row(GROUP, f"parametrizations: weight norm on {LINEAR}")
def parametrized(place: Place) -> Results:
    model = place.model("untied")
    torch.manual_seed(0)
    torch.nn.utils.parametrizations.weight_norm(model.get_submodule(HOOKED[LINEAR]))
    with torch.no_grad():
        model.get_submodule(HOOKED[LINEAR]).parametrizations.weight.original0.mul_(0.5)
    return forward_and_backward(model) | {"few": logits(model, FEW)}


@row(GROUP, f"pruning of {LINEAR} by torch.nn.utils.prune")
def pruned(place: Place) -> Results:
    from torch.nn.utils import prune

    model = place.model("untied")
    prune.l1_unstructured(model.get_submodule(HOOKED[LINEAR]), "weight", amount=0.5)
    prune.l1_unstructured(model.get_submodule(HOOKED[LINEARS[-1]]), "weight", amount=0.5)
    return forward_and_backward(model) | {"few": logits(model, FEW)}


@row(GROUP, f"a bias added to {LINEAR} and to {HERE.biased}")
def added_bias(place: Place) -> Results:
    model = place.model("untied")
    for label, scale in ((LINEAR, 100), (LINEARS[-1], 2)):
        linear = model.get_submodule(HOOKED[label])
        linear.bias = torch.nn.Parameter(torch.arange(linear.out_features) / scale)
    return forward_and_backward(model) | {"few": logits(model, FEW)}


@row(GROUP, "layers removed, repeated and reordered")
def changed_layers(place: Place) -> Results:
    model = place.model()
    layers = model.model.layers
    results = {}
    for name, order in {"reversed": [1, 0], "repeated": [0, 1, 1], "first": [0]}.items():
        model.model.layers = torch.nn.ModuleList([layers[i] for i in order])
        model.config.num_hidden_layers = len(order)
        results[name] = logits(model, use_cache=False)
    return results


@row(GROUP, "weights changed in place through .data", four_bits=False)
def changed_weights(place: Place) -> Results:
    model = place.model()
    results = {"before": logits(model, FEW)}
    for one in model.parameters():
        one.data.mul_(1.1)
    return results | {"after": logits(model, FEW), "batch": logits(model)}
