"""The memory of a step with the starter, by arithmetic: what a CPU Space of 16 GB lets a visitor train."""

import pytest
import torch

from studio.backend.models import needs, placement
from studio.backend.recipe import Recipe
from studio.backend.system import plan
from studio.errors import StudioError

BF16, FP32 = torch.bfloat16, torch.float32
SPACE = 12 * plan.GIB
"""Free on CPU basic beside the page and its model."""


def require(precision: torch.dtype, monkeypatch, longest: int | None = None, free: int = SPACE, **settings) -> None:
    monkeypatch.setattr(placement, "default_dtype", lambda device: precision)
    monkeypatch.setattr(plan, "available_memory", lambda: free)
    recipe = Recipe(data="identity", max_steps=60, **settings)
    needs.require_step_memory(recipe, longest or recipe.max_length)


def test_the_largest_steps_of_a_demo_do_not_fit_without_checkpointing(monkeypatch):
    with pytest.raises(StudioError, match=r"needs up to 13\.\d GiB of memory, and 12\.0 GiB are free: lower"):
        require(BF16, monkeypatch, batch_size=8, max_length=1024)
    require(BF16, monkeypatch, batch_size=8, max_length=1024, gradient_checkpointing=True)
    require(BF16, monkeypatch, batch_size=8, max_length=512, gradient_accumulation=2)
    require(BF16, monkeypatch, batch_size=32, max_length=256, longest=128)


def test_32_bits_need_twice_as_much(monkeypatch):
    require(BF16, monkeypatch, batch_size=8, max_length=512)
    with pytest.raises(StudioError, match="or max_length, or set gradient_checkpointing"):
        require(FP32, monkeypatch, batch_size=8, max_length=512)


def test_a_probe_and_other_models_are_not_foreseen(monkeypatch):
    require(BF16, monkeypatch, free=0, task="classify", method="probe")
    require(BF16, monkeypatch, free=0, model="a/b")
