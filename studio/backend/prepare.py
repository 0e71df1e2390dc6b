"""Everything that a training run works on: checked rows, then the model in its precision with a new adapter.

data = prepare_data(recipe, tokenizer)        # bad rows are said before a model is loaded
ready = prepare(recipe)
ready.model, ready.data.train, ready.warnings
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import peft
import torch
from accelerate import PartialState
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from jetmoe import RoutingRecorder
from jetmoe.lora import AdapterError, hot_experts, lora_config, mask_gradients, require_free_routers
from studio.analysis.load import assignments
from studio.backend import catalog, memory
from studio.backend.data import Dataset, DataSettings, Example, read
from studio.backend.download import Progress, reading
from studio.backend.packing import Feature, pack
from studio.backend.recipe import Recipe
from studio.backend.rendering import Rendered, Summary, render, summary
from studio.errors import StudioError

# So many tokens of the training rows decide which experts are hot.
HOT_TOKENS = 16_384
SAMPLES = 3
SHOWN_BAD_ROWS = 5


@dataclass(frozen=True)
class TrainingData:
    dataset: Dataset
    train: list[Feature]
    """Rows of a batch: packs of examples, or one example each."""
    held_out: list[Feature]
    prompts: list[list[dict[str, str]]]
    """Conversations that are answered at every evaluation."""
    summary: Summary
    warnings: list[str]

    def report(self) -> dict[str, Any]:
        """What is in the data, for events and model cards."""
        return {
            "file": self.dataset.path.name,
            "fingerprint": self.dataset.fingerprint,
            "format": self.dataset.format,
            "examples": len(self.dataset.examples),
            "bad_rows": len(self.dataset.bad_rows),
            "duplicates": self.dataset.duplicates,
            "train_rows": len(self.train),
            "held_out_rows": len(self.held_out),
            **vars(self.summary),
        }


@dataclass
class Prepared:
    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    data: TrainingData
    base: Any
    """The model itself; `model` is PEFT's wrapper around it."""
    model: Any
    precision: str
    warnings: list[str] = field(default_factory=list)


def prepare(recipe: Recipe, progress: Progress = lambda fraction, text: None) -> Prepared:
    """Reads the rows, loads the model and gives it a new adapter.

    Raises:
        StudioError: the rows, the model or the settings can't be used; the message says why and what to do.
    """
    path = catalog.prepare(recipe.model, progress)
    tokenizer = AutoTokenizer.from_pretrained(path)
    data = prepare_data(recipe, tokenizer)
    base, precision = _load(recipe, path, progress)
    torch.manual_seed(recipe.seed)  # the start of the adapter
    model = _adapted(base, recipe)
    warnings = [*data.warnings]
    if "hot" in recipe.preset.split("+"):
        warnings.append(_train_hot_experts(base, data.train, recipe.hot_share))
    if recipe.balance_loss:
        base.config.aux_loss_coef = recipe.balance_loss
    return Prepared(recipe, tokenizer, data, base, model, precision, warnings)


def prepare_data(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> TrainingData:
    """Raises StudioError: the file can't be used, or nothing in it can be trained on."""
    dataset = read(recipe.data, DataSettings(recipe.format, recipe.columns, recipe.on_bad_rows))
    train, held_out = dataset.split(recipe.eval_share, recipe.seed)
    rendered = {
        id(each): render(tokenizer, each.messages, recipe.max_length) for part in (train, held_out) for each in part
    }
    total = summary([*rendered.values()], recipe.max_length)
    rows, held_out_rows = ([rendered[id(each)] for each in part] for part in (train, held_out))
    data = TrainingData(
        dataset,
        _rows(rows, recipe),
        _rows(held_out_rows, recipe),
        _prompts(recipe, held_out or train),
        total,
        _warnings(dataset, total, recipe),
    )
    if not data.train:
        raise StudioError(
            f"No row of {dataset.path.name} has anything to train on within max_length={recipe.max_length} tokens: "
            "raise max_length."
        )
    return data


def _rows(rendered: Sequence[Rendered], recipe: Recipe) -> list[Feature]:
    examples = [(each.token_ids, each.trained) for each in rendered if any(each.trained[1:])]
    if not recipe.packing:
        return [[example] for example in examples]
    packs = pack([len(token_ids) for token_ids, _ in examples], recipe.max_length)
    return [[examples[i] for i in indices] for indices in packs]


def _prompts(recipe: Recipe, examples: Sequence[Example]) -> list[list[dict[str, str]]]:
    if recipe.sample_prompts:
        return [[{"role": "user", "content": prompt}] for prompt in recipe.sample_prompts]
    # What stands before the last answer; a plain text has no prompt, so there its beginning is one.
    asked = [[*each.messages[:-1]] or _beginning(each) for each in examples[:SAMPLES]]
    return [messages for messages in asked if messages[-1]["role"] == "user"]


def _beginning(example: Example) -> list[dict[str, str]]:
    return [{"role": "user", "content": example.messages[0]["content"][:200]}]


def _warnings(dataset: Dataset, total: Summary, recipe: Recipe) -> list[str]:
    warnings = [*dataset.notices]
    if dataset.bad_rows:
        shown = "; ".join(str(bad) for bad in dataset.bad_rows[:SHOWN_BAD_ROWS])
        warnings.append(f"{len(dataset.bad_rows):,} bad rows were left out, such as {shown}")
    if total.cut:
        warnings.append(f"{total.cut:,} rows are longer than max_length={recipe.max_length} tokens and are cut.")
    if total.untrained:
        warnings.append(f"{total.untrained:,} rows are left out: cut before their answer began. Raise max_length.")
    if recipe.eval_share and len(dataset.examples) < 2:
        warnings.append("There is a single row, so nothing is held out to measure the loss on.")
    return warnings


def _load(recipe: Recipe, path: Path, progress: Progress) -> tuple[Any, str]:
    entry = catalog.entry(recipe.model)
    memory.check_precision(recipe.precision)
    place = memory.placement(entry, cast(memory.Precision, recipe.precision))
    device = str(processes().device) if place.device == "cuda" else "cpu"
    model = memory.load_model(path, place, "train with precision=nf4", reading(progress), device)
    return model, place.precision


def _adapted(base: Any, recipe: Recipe) -> Any:
    try:
        require_free_routers(base.config, recipe.preset, recipe.insist_on_router)
        config = lora_config(recipe.preset, recipe.r, recipe.lora_alpha)
    except AdapterError as error:
        raise StudioError(f"{error} (preset, insist_on_router)") from error
    return peft.get_peft_model(base, config)


def _train_hot_experts(base: Any, rows: Sequence[Feature], share: float) -> str:
    """Masks the gradients of all but the hot experts; says how many those are."""
    hot = hot_experts(_load_on(base, rows), share)  # [L, N, E]
    mask_gradients(base, hot)
    per_router = hot.sum(axis=-1)
    return (
        f"Only {int(hot.sum())} of {hot.size} experts are trained, {per_router.min()} to {per_router.max()} of "
        f"{hot.shape[-1]} in a router: those that take {share:.0%} of the routing on your data."
    )


def processes() -> PartialState:
    """The processes that `accelerate launch` started for this run; a single one without it."""
    return PartialState(cpu=not torch.cuda.is_available())


@torch.no_grad()
def _load_on(base: Any, rows: Sequence[Feature]) -> np.ndarray:
    """Each expert's share of the assignments on the training rows, float64 `[L, N, E]`."""
    counts: Any = 0
    tokens = 0
    for row in rows:
        for token_ids, _ in row:
            recorder = RoutingRecorder(base, len(token_ids))
            ids = torch.tensor([token_ids], device=base.device)
            base.model(input_ids=ids, use_cache=False, recorder=recorder)
            trace = recorder.trace(token_ids, [""] * len(token_ids), True)
            counts = counts + assignments(trace, "expert")  # [L, N, E]
            tokens += len(token_ids)
        if tokens >= HOT_TOKENS:
            break
    return counts / counts.sum(axis=-1, keepdims=True)
