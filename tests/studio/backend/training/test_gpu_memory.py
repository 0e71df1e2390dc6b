"""The forecast of a run on a GPU, and one GPU for each process."""

from types import SimpleNamespace

import torch
from transformers import TrainingArguments

from studio.backend.recipe import Recipe
from studio.backend.training import gpu_memory
from studio.backend.training.trainer import training_arguments

GIB = 2**30


def test_the_forecast_is_the_peak_of_the_trial_and_the_moments(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 6 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 7 * GIB)  # of which a part is cached, not used
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 5 * GIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3 * GIB, 16 * GIB))
    assert gpu_memory.unused() == 5 * GIB
    assert gpu_memory.needed_and_free(GIB) == (14 * GIB, 10 * GIB)
    assert gpu_memory.needed_and_free(GIB, parts=2) == (10 * GIB, 10 * GIB)


def test_several_gpus_are_not_shared_by_one_process(monkeypatch, tmp_path):
    """transformers would copy the model to all of them in every step."""
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda arguments: 2))
    recipe = Recipe.from_settings({"model": "starter", "data": "rows.jsonl"})
    base = SimpleNamespace(dtype=torch.bfloat16, device=torch.device("cpu"))
    arguments = training_arguments(recipe, SimpleNamespace(checkpoints=tmp_path), "", base)
    assert arguments._n_gpu == 1 and not arguments.fp16
