"""The trainer for classification heads."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from studio.backend.classification.head import LengthGrouped, head_loss, measure
from studio.backend.recipe import Recipe
from studio.backend.runs.run import Run
from studio.backend.training import fsdp
from studio.backend.training.callback import RunCallback
from studio.backend.training.prepare import Prepared, head_scale, processes
from studio.backend.training.trainer import FSDPTrainer, StudioTrainer


class HeadTrainer(StudioTrainer):
    """Train a classification head, with batches of texts of similar length and metrics besides the loss."""

    def __init__(self, prepared: Prepared, run: Run, reporter: RunCallback) -> None:
        super().__init__(prepared, run, reporter)
        assert prepared.data.labels is not None
        self.labels = prepared.data.labels
        self.compute_loss_func = self._head_loss
        self.model_accepts_loss_kwargs = False  # the loss is not the model's

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        return Trainer.compute_loss(self, model, {**inputs, "use_cache": False}, return_outputs, num_items_in_batch)

    def create_optimizer(self, model: Any = None) -> Any:
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new:
            base = self.reporter.prepared.base
            _slow_down(optimizer, base.score.weight, head_scale(base.model.norm))
        return optimizer

    def _head_loss(self, outputs: Any, targets: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return head_loss(self.labels, outputs.logits, targets, num_items_in_batch)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Return the number of rows in the whole step; Trainer's own method would skip a regression target of -100."""
        rows = torch.tensor(sum(len(batch["labels"]) for batch in batch_samples), device=device)
        return self.accelerator.gather(rows).sum()

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGrouped:
        lengths = [len(token_ids) for token_ids, _ in self.reporter.prepared.data.train]
        # Batches per step, over all devices and accumulated batches.
        a_step = self.args.gradient_accumulation_steps * processes().num_processes
        return LengthGrouped(lengths, self.args.per_device_train_batch_size * a_step, self.args.seed)

    def _measured(self, model: Any, batches: Any) -> dict[str, float]:
        logits, targets = self._answers(model, batches)
        figures = {"loss": float(head_loss(self.labels, logits, targets)), **measure(self.labels, logits, targets)}
        return {f"eval_{name}": value for name, value in figures.items()}

    @torch.no_grad()
    def held_out_logits(self) -> Tensor:
        """Return the logits `[T, C]` of the held-out rows in fp32, in the order of the rows."""
        model: Any = self.model_wrapped
        model.eval()
        return self._answers(model, self.get_eval_dataloader())[0]

    def _answers(self, model: Any, batches: Any) -> tuple[Tensor, Tensor]:
        """Return logits `[T, C]` and targets of the rows of all processes."""
        found: list[Tensor] = []
        wanted: list[Tensor] = []
        for batch in batches:
            batch = self._prepare_inputs(batch)
            targets = batch.pop("labels")
            logits = model(**batch, use_cache=False).logits.float()  # [B, C]
            for kept, part in zip((found, wanted), self.accelerator.gather_for_metrics((logits, targets)), strict=True):
                kept.append(part.cpu())
        return torch.cat(found), torch.cat(wanted)

    def _filled(self, rows: list[Any], batch_size: int) -> list[Any]:
        """Return the rows unchanged, because `gather_for_metrics` drops the rows that accelerate repeats."""
        return rows


class FSDPHeadTrainer(HeadTrainer, FSDPTrainer):
    """Train a classification head on a sharded model."""


def _slow_down(optimizer: Any, parameter: Tensor, scale: float) -> None:
    """Move the parameter to a separate group, with its learning rate divided by `scale`."""
    (group,) = [each for each in optimizer.param_groups if any(one is parameter for one in each["params"])]
    group["params"] = [one for one in group["params"] if one is not parameter]
    optimizer.add_param_group({**group, "params": [parameter], "lr": group["lr"] / scale})


def trainer_class(recipe: Recipe) -> type[StudioTrainer]:
    if recipe.task == "classify":
        return FSDPHeadTrainer if fsdp.is_fsdp() else HeadTrainer
    return FSDPTrainer if fsdp.is_fsdp() else StudioTrainer


def save_labels(config: Any, folder: Path) -> None:
    """Write a classifier's configuration next to its adapter, which does not contain the label names.

    The quantization and the dtype of the base model in training are left out.
    """
    own = copy.deepcopy(config)
    for name in ("quantization_config", "dtype"):
        if getattr(own, name, None) is not None:
            delattr(own, name)
    own.save_pretrained(folder)
