"""Which checkpoints are whole and which are kept; the order of parameters in optimizer states, now and in 0.1."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from studio.backend.training.checkpoint import (
    REQUIRED,
    WHOLE,
    complete,
    damage,
    last_checkpoint,
    parameter_names,
    reordered,
    rotate,
)

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


def checkpoint(folder: Path, step: int) -> Path:
    made = folder / f"checkpoint-{step}"
    made.mkdir(parents=True)
    for name in (*REQUIRED, "rng_state.pth"):
        (made / name).write_text(f"{name} of step {step}")
    complete(made, NOW)
    return made


def flip(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[:5] + bytes([data[5] ^ 1]) + data[6:])


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (Path.unlink, "is missing"),
        (lambda file: file.write_bytes(b""), "is empty"),
        (flip, "has changed"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "has changed"),
    ],
)
@pytest.mark.parametrize("name", [*REQUIRED, "rng_state.pth"])
def test_the_next_older_checkpoint_replaces_a_damaged_one(tmp_path, name, harm, problem):
    older, newest = checkpoint(tmp_path, 90), checkpoint(tmp_path, 100)
    run = SimpleNamespace(checkpoints=tmp_path)
    assert last_checkpoint(run) == newest
    harm(newest / name)
    found: list[str] = []
    assert last_checkpoint(run, found.append) == older
    assert len(found) == 1 and found[0].startswith(f"checkpoint-100 is damaged: {name} {problem}")


@pytest.mark.parametrize("marker", [b"", b"{", b'{"files": 3, "parameters": []}', b'{"files": {}}', b"\xff{"])
def test_a_damaged_marker_is_no_marker_of_a_whole_checkpoint(tmp_path, marker):
    folder = checkpoint(tmp_path, 1)
    (folder / WHOLE).write_bytes(marker)
    assert bool(damage(folder)) == bool(marker), "an empty one is of version 0.1"


@pytest.mark.parametrize("name", REQUIRED)
def test_a_checkpoint_of_an_older_version_has_all_of_its_files(tmp_path, name):
    folder = checkpoint(tmp_path, 1)
    (folder / WHOLE).write_text("\n".join(NOW))
    assert damage(folder) == ""
    (folder / name).write_bytes(b"")
    assert damage(folder) == f"{name} is empty"


def test_rotation_goes_by_step_whatever_the_clock_says(tmp_path):
    for number, step in enumerate((2, 4, 10, 8, 6)):
        folder = checkpoint(tmp_path, step)
        os.utime(folder, (1000 - number, 1000 - number))
    (tmp_path / "checkpoint-12").mkdir()  # one that was never complete
    rotate(tmp_path, 2, str(tmp_path / "checkpoint-4"))
    assert {folder.name for folder in tmp_path.iterdir()} == {"checkpoint-4", "checkpoint-8", "checkpoint-10"}
