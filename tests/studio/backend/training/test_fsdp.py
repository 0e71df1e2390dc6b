"""What is refused where the model is spread over devices; test_train.py spreads one."""

from __future__ import annotations

import pytest
import torch

from jetmoe import JetMoeForCausalLM
from jetmoe.loading.load import load
from studio.backend.recipe import Recipe
from studio.backend.runs.store import RunStore
from studio.backend.training import fsdp
from studio.backend.training import run as train
from studio.errors import StudioError
from tests.builders.toy_folder import toy_folder, toy_rows


@pytest.mark.parametrize(
    ("launcher", "settings", "said"),
    [
        ({fsdp.DEEPSPEED: "true"}, {}, "DeepSpeed is not supported: launch with recipes/accelerate/fsdp.yaml"),
        ({fsdp.FSDP: "true"}, {"preset": "router+hot"}, "preset=hot .* set preset=all"),
        ({fsdp.FSDP: "true"}, {"precision": "nf4"}, "4-bit weights can't be sharded .* set precision=bf16"),
        ({fsdp.FSDP: "true", fsdp.OFFLOAD: "true"}, {}, "set fsdp_offload_params to false"),
    ],
)
def test_what_cant_be_trained_in_parts_makes_no_run(tmp_path, monkeypatch, launcher, settings, said):
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    settings |= {"model": str(toy_folder(tmp_path / "toy")), "data": str(toy_rows(tmp_path / "rows.jsonl"))}
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StudioError, match=said):
        train.start(Recipe.from_settings(settings))
    assert not RunStore().list()


def test_automatic_precision_is_4_bit_on_a_gpu_alone(monkeypatch):
    monkeypatch.setenv(fsdp.FSDP, "true")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    fsdp.check(Recipe())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(StudioError, match="precision=auto is 4-bit"):
        fsdp.check(Recipe())
    fsdp.check(Recipe(precision="bf16"))


def test_a_4_bit_checkpoint_is_refused(tmp_path):
    toy_folder(tmp_path / "toy")
    fsdp.check_weights(tmp_path / "toy", "bf16")
    with pytest.raises(StudioError, match=r"toy would be loaded in 4 bits, .* set precision=bf16"):
        fsdp.check_weights(tmp_path / "toy", "nf4")
    load(JetMoeForCausalLM, tmp_path / "toy", quantization="nf4").save_pretrained(tmp_path / "small")
    with pytest.raises(StudioError, match="small is stored in 4 bits"):
        fsdp.check_weights(tmp_path / "small", "bf16")
