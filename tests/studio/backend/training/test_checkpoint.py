"""The order of parameters in optimizer states, now and in version 0.1."""

import torch
from torch import nn

from studio.backend.training.checkpoint import WHOLE, complete, parameter_names, reordered

NOW = [
    "model.layers.0.mlp.router.lora_A",
    "model.layers.0.self_attention.kv_proj.lora_A",
    "model.layers.1.mlp.router.lora_A",
    "model.layers.1.self_attention.kv_proj.lora_A",
    "score.weight",
]
FORMERLY = [NOW[1], NOW[0], NOW[3], NOW[2], NOW[4]]


def stored(names, sizes=(4, 1)):
    """A state whose values are the names, in two groups; the last parameter has none yet."""
    groups, start = [], 0
    for size in sizes:
        groups.append({"lr": size, "params": list(range(start, start + size))})
        start += size
    return {"state": {i: {"of": name} for i, name in enumerate(names[:-1])}, "param_groups": groups}


def test_a_checkpoint_without_names_has_the_order_of_0_1(tmp_path):
    (tmp_path / WHOLE).touch()
    assert reordered(tmp_path, stored(FORMERLY), NOW) == stored(NOW)


def test_a_checkpoint_names_its_parameters(tmp_path):
    complete(tmp_path, NOW)
    assert reordered(tmp_path, stored(NOW), NOW) == stored(NOW)
    other = [NOW[2], NOW[3], NOW[0], NOW[1], NOW[4]]
    complete(tmp_path, other)
    assert reordered(tmp_path, stored(other), NOW) == stored(NOW)


def test_names_follow_the_groups_of_the_optimizer():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    groups = [{"params": [model[1].weight]}, {"params": [model[0].bias, model[0].weight]}]
    assert parameter_names(model, torch.optim.SGD(groups, lr=1.0)) == ["1.weight", "0.bias", "0.weight"]
