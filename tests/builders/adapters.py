"""LoRA adapters that change a toy's answers, as folders and as finished runs."""

from pathlib import Path

import peft
import torch

from jetmoe import JetMoeForCausalLM
from jetmoe.lora import lora_config
from studio.backend.recipe import Recipe
from studio.backend.runs.run import Run
from studio.backend.runs.store import RunStore


def make_adapter(base: Path, folder: Path, seed: int, preset: str = "all", std: float = 0.2) -> Path:
    """An adapter that changes answers, as PEFT saves it."""
    torch.manual_seed(seed)
    adapted = peft.get_peft_model(JetMoeForCausalLM.from_pretrained(base), lora_config(preset, r=4, lora_alpha=4))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std)
    adapted.save_pretrained(folder)
    return folder


def finished_run(
    base: Path, seed: int = 1, *, store: RunStore | None = None, name: str = "", owner: str = "", **settings
) -> Run:
    """What a run leaves that has learned something. It is never queued, where a server would start it."""
    store = store or RunStore()
    run = store.create(Recipe.from_settings({"model": str(base), **settings}), name, begin=True, owner=owner)
    make_adapter(base, run.adapter, seed)
    return store.finish(run.id, "done")
