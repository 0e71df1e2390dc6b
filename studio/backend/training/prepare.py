"""Prepare a training run: check the rows, then load the model in its precision and add a new adapter.

data = prepare_data(recipe, tokenizer)        # reports bad rows before a model is loaded
ready = prepare(recipe)
ready.model, ready.data.train, ready.warnings
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import peft
import torch
from accelerate import PartialState
from torch import Tensor
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from jetmoe import RoutingRecorder
from jetmoe.adapters.ddp import exclude_frozen
from jetmoe.adapters.hot_experts import hot_experts, mask_gradients
from jetmoe.config import MoeConfig
from jetmoe.loading.checkpoint import CheckpointError, read_model_config
from jetmoe.lora import AdapterError, lora_config, require_free_routers
from jetmoe.specialists import only, replica
from studio.analysis.load import assignments
from studio.backend.classification.head import LabelledCollator, configure, head_loss
from studio.backend.data.dataset import Dataset, read, settings_of
from studio.backend.data.examples import Example
from studio.backend.data.features import features_of
from studio.backend.data.labelled import Labels, Truth, read_labelled, read_texts, summarized
from studio.backend.data.notices import notices
from studio.backend.data.packing import Collator, Feature, pad_id
from studio.backend.data.rendering import Summary, summary
from studio.backend.models import catalog, placement
from studio.backend.recipe import Recipe
from studio.backend.system.progress import Progress, reading
from studio.backend.training import fsdp
from studio.errors import StudioError

# The hot experts are chosen from the routing of this many training tokens.
HOT_TOKENS = 16_384
SAMPLES = 3
MEASURED = 2000
"""Held-out rows of a chat run that an evaluation reads at most."""
# Seconds in which the threads of the collectives release their last tensors.
SETTLE_S = 0.5


@dataclass(frozen=True)
class TrainingData:
    dataset: Dataset
    train: list[Any]
    """`Feature`, with a pack of examples or one example each; for classification, `LabelledFeature`."""
    held_out: list[Any]
    prompts: list[list[dict[str, str]]]
    """Conversations to answer at every evaluation."""
    summary: Summary
    warnings: list[str]
    labels: Labels | None = None
    """None for chat."""
    learned: Truth | None = None
    """The texts of `train` with their labels; `measured` has those of `held_out`."""
    measured: Truth | None = None

    @property
    def measure(self) -> str:
        """The metric that selects the best checkpoint, under its name in events."""
        return "eval_loss" if self.labels is None or self.labels.problem == "regression" else "eval_macro_f1"

    def report(self) -> dict[str, Any]:
        """Return a summary of the data, for events and model cards."""
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
            **(self.labels.report() if self.labels else {}),
        }


@dataclass
class Prepared:
    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    data: TrainingData
    base: Any
    """The base model; `model` is PEFT's wrapper around it."""
    model: Any
    precision: str
    warnings: list[str] = field(default_factory=list)

    @property
    def collate(self) -> Collator | LabelledCollator:
        """The collator of the task."""
        pad = pad_id(self.tokenizer)
        return Collator(pad) if self.data.labels is None else LabelledCollator(pad, self.data.labels)

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Return the loss of a batch that is a whole step."""
        if self.data.labels is None:
            return self.model(**batch, use_cache=False, skip_logits=True).loss
        texts = {name: values for name, values in batch.items() if name != "labels"}
        return head_loss(self.data.labels, self.model(**texts, use_cache=False).logits, batch["labels"])


def prepare(recipe: Recipe, progress: Progress = lambda fraction, text: None) -> Prepared:
    """Read the rows, load the model and add a new adapter.

    Raises:
        StudioError: the rows, the model or the settings can't be used; the message has the reason and a remedy.
    """
    fsdp.check(recipe)
    path = catalog.prepare(recipe.model, progress)
    adapter = _adapter_config(recipe, path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    data = prepare_data(recipe, tokenizer)
    base, precision = _load(recipe, path, progress, data.labels, pad_id(tokenizer))
    torch.manual_seed(recipe.seed)  # for the initial weights of the adapter
    model = _adapted(base, adapter)
    warnings = [*data.warnings]
    if "hot" in recipe.preset.split("+") and recipe.method == "lora":
        warnings.append(_train_hot_experts(base, _texts(data), recipe.hot_share))
    if recipe.specialist:
        warnings.append(_train_specialist(base, recipe.specialist))
    if recipe.balance_loss:
        base.config.aux_loss_coef = recipe.balance_loss
    if fsdp.is_fsdp():
        fsdp.shard_model(model, base.model.layers, processes().device)
    else:
        exclude_frozen(model)
    return Prepared(recipe, tokenizer, data, base, model, precision, warnings)


def prepare_data(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> TrainingData:
    """Read, split and tokenize the rows.

    Raises:
        StudioError: the file can't be used, or nothing in it can be trained on.
    """
    if recipe.task == "classify":
        return _labelled_data(recipe, tokenizer)
    dataset = read(recipe.data, settings_of(recipe))
    train, held_out = dataset.split(recipe.eval_share, recipe.seed)
    trained = features_of(tokenizer, dataset.examples, train, recipe, _rows_needed(recipe))
    measured = features_of(tokenizer, dataset.examples, _sampled(held_out, recipe.seed), recipe)
    total = summary([*trained.rendered, *measured.rendered], recipe.max_length)
    warnings = notices(dataset, total, len(held_out), recipe)
    if len(trained.rendered) < len(train):
        read_rows = f"{len(trained.rendered):,} of the {len(train):,}"
        warnings.insert(0, f"{recipe.max_steps:,} steps read {read_rows} training rows. Tokens are counted in these.")
    if len(measured.rendered) < len(held_out):
        warnings.insert(0, f"The held-out loss is measured on {MEASURED:,} of the {len(held_out):,} held-out rows.")
    prompts = _prompts(recipe, [dataset.examples[i] for i in (held_out if len(held_out) else train)[:SAMPLES]])
    data = TrainingData(dataset, trained.rows, measured.rows, prompts, total, warnings)
    if not data.train:
        raise StudioError(
            f"No row of {dataset.path.name} has anything to train on within max_length={recipe.max_length} tokens: "
            "raise max_length."
        )
    return data


def _labelled_data(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> TrainingData:
    found = read_labelled(recipe)
    train, held_out = found.split(recipe.eval_share, recipe.seed)
    texts = read_texts(tokenizer, (each.messages for each in found.examples), recipe.max_length, found.prompt)
    total = summarized(texts, recipe.max_length)
    labels = Labels(found.problem, found.names, found.counts(train), recipe.class_weights, len(train), found.prompt)
    rows = [(text.token_ids, target) for text, target in zip(texts, found.targets, strict=True)]
    return TrainingData(
        found.dataset,
        [rows[i] for i in train],
        [rows[i] for i in held_out],
        [],
        total,
        [*notices(found.dataset, total, len(held_out), recipe), *found.warnings(train, held_out, recipe)],
        labels,
        found.truth(train),
        found.truth(held_out),
    )


def _sampled(held_out: np.ndarray, seed: int) -> np.ndarray:
    """Return the held-out rows that an evaluation reads: all, or `MEASURED` random ones."""
    if len(held_out) <= MEASURED:
        return held_out
    return np.sort(np.random.default_rng(seed).choice(held_out, MEASURED, replace=False))


def _rows_needed(recipe: Recipe) -> int:
    """Return the number of rows, or packs, that the steps of the run read; 0 if it reads all."""
    return recipe.max_steps * recipe.batch_size * recipe.gradient_accumulation * processes().num_processes


def _prompts(recipe: Recipe, examples: Sequence[Example]) -> list[list[dict[str, str]]]:
    if recipe.sample_prompts:
        return [[{"role": "user", "content": prompt}] for prompt in recipe.sample_prompts]
    # The messages before the last answer. A plain text has none, so its beginning is the prompt.
    asked = [[*each.messages[:-1]] or _beginning(each) for each in examples]
    return [messages for messages in asked if messages[-1]["role"] == "user"]


def _beginning(example: Example) -> list[dict[str, str]]:
    return [{"role": "user", "content": example.messages[0]["content"][:200]}]


def _load(recipe: Recipe, path: Path, progress: Progress, labels: Labels | None, pad: int) -> tuple[Any, str]:
    """Load the model with the head of its task; return it with its precision."""
    entry = catalog.entry(recipe.model)
    placement.check_precision(recipe.precision)
    place = placement.placement(entry, cast(placement.Precision, recipe.precision))
    device = str(processes().device) if place.device == "cuda" else "cpu"
    if fsdp.is_fsdp():
        fsdp.check_weights(path, place.precision)
        device = "cpu" if processes().is_main_process else "meta"  # one copy in the machine's memory is enough
    model_class: Any = AutoModelForCausalLM if labels is None else AutoModelForSequenceClassification
    config = None if labels is None else labelled_config(path, labels, pad)
    remedy = "train with precision=nf4"
    model = placement.load_model(path, place, remedy, reading(progress), device, model_class=model_class, config=config)
    return model, place.precision


def labelled_config(path: Path, labels: Labels, pad: int) -> MoeConfig:
    """Return the configuration of the model in a folder, changed to have a head for these labels.

    Raises:
        StudioError: the folder has no configuration, or one of another model family.
    """
    try:
        config = read_model_config(path)
    except CheckpointError as error:
        raise StudioError(str(error)) from error
    configure(config, labels, pad)
    config.architectures = [cast(type, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]).__name__]
    return config


def _adapter_config(recipe: Recipe, path: Path) -> peft.LoraConfig:
    """Return the configuration of the adapter, before weights are read.

    Raises:
        StudioError: the model is of another family, or its family does not have the preset.
    """
    task_type = "SEQ_CLS" if recipe.task == "classify" else "CAUSAL_LM"
    # A probe's adapter holds the head, and stays zero: PEFT has no adapter without LoRA.
    preset, r = ("attention", 1) if recipe.method == "probe" else (recipe.preset, recipe.r)
    try:
        base = read_model_config(path)
        require_free_routers(base, preset, recipe.insist_on_router)
        if recipe.specialist:
            specialist_experts(base, recipe.specialist)
        return lora_config(preset, r, recipe.lora_alpha, task_type, base.model_type)
    except CheckpointError as error:
        raise StudioError(str(error)) from error
    except AdapterError as error:
        raise StudioError(f"{error} (preset, insist_on_router)") from error


def _adapted(base: Any, config: peft.LoraConfig) -> Any:
    is_classifier = config.task_type == "SEQ_CLS"
    if is_classifier:
        # The head is fully trained, and rounding to 16 bits would lose updates. It is initialized here, after seeding.
        base.score.float()
        if not base.score.weight.is_meta:
            torch.nn.init.normal_(base.score.weight, std=base.config.initializer_range / head_scale(base.model.norm))
    model = peft.get_peft_model(base, config)
    if is_classifier:
        config.modules_to_save = ["score"]  # without the names of other models' heads that PEFT adds
    return model


def head_scale(norm: Any) -> float:
    """Return the scale of the head's inputs, which is usually 1, from the weights of the norm before it.

    The head's initial weights and learning rate are divided by it. Otherwise a single step would flip all answers.
    """
    return max(1.0, float(fsdp.whole(norm.weight.detach()).float().square().mean().sqrt()))


def _texts(data: TrainingData) -> list[Feature]:
    """Return the training rows as the examples on which the routing is measured."""
    return data.train if data.labels is None else [[(token_ids, ())] for token_ids, _ in data.train]


def _train_hot_experts(base: Any, rows: Sequence[Feature], share: float) -> str:
    """Mask the gradients of all but the hot experts; return a sentence with the number of hot experts."""
    hot = hot_experts(_load_on(base, rows), share)  # [L, N, E]
    mask_gradients(base, hot)
    per_router = hot.sum(axis=-1)
    return (
        f"Only {int(hot.sum())} of {hot.size} experts are trained, {per_router.min()} to {per_router.max()} of "
        f"{hot.shape[-1]} in a router: those that take {share:.0%} of the routing on your data."
    )


def specialist_experts(config: MoeConfig, text: str) -> list[int]:
    """Return the experts that the setting `specialist` names.

    Raises:
        StudioError: the model has no such experts, or its routers select more than these.
    """
    kind, _, numbers = text.partition(" ")
    try:
        experts = replica(config, int(numbers)) if kind == "replica" else [int(each) for each in numbers.split(",")]
        only(config, experts)
    except ValueError as error:
        raise StudioError(f"{error} (specialist: {text})") from error
    return experts


def _train_specialist(base: Any, text: str) -> str:
    """Route every token to the specialist's experts; return a sentence that says so."""
    experts = specialist_experts(base.config, text)
    only(base.config, experts).apply(base)
    return (
        f"Every token of this run is routed to the experts {', '.join(map(str, experts))}, and only these are trained. "
        "In a chat the model's own routers decide, until `python -m studio compose` fits them."
    )


@atexit.register
def _leave() -> None:
    """Destroy the process group before Python exits.

    A thread that has just carried out a collective needs Python to release its tensors, and a mesh keeps the threads
    alive. If Python exits first, a signal ends the process.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        time.sleep(SETTLE_S)


def processes() -> PartialState:
    """Return the processes that `accelerate launch` started for this run, or a single process without it."""
    return PartialState(cpu=not torch.cuda.is_available())


@torch.no_grad()
def _load_on(base: Any, rows: Sequence[Feature]) -> np.ndarray:
    """Return each expert's share of the assignments on the training rows, float64 `[L, N, E]`."""
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
