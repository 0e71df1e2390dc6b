"""transformers.Trainer for language models: losses, complete checkpoints, FSDP."""

from __future__ import annotations

import shutil
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from jetmoe.adapters.files import WEIGHTS
from jetmoe.losses import IGNORED
from studio.backend.recipe import Recipe
from studio.backend.runs.run import Run
from studio.backend.training import fsdp
from studio.backend.training.callback import RunCallback
from studio.backend.training.checkpoint import WHOLE, complete, damage, parameter_names, reordered, rotate
from studio.backend.training.prepare import Prepared, processes
from studio.errors import StudioError

SCHEDULERS = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


class StudioTrainer(Trainer):
    """transformers.Trainer with a loss that never holds all logits, checks for NaN and complete checkpoints."""

    def __init__(self, prepared: Prepared, run: Run, reporter: RunCallback) -> None:
        recipe, data = prepared.recipe, prepared.data
        self.reporter, self.run = reporter, run
        callbacks: list[Any] = [reporter]
        if recipe.early_stopping and data.held_out:
            callbacks.append(Patience(recipe.early_stopping))
        super().__init__(
            model=prepared.model,
            args=training_arguments(recipe, run, data.measure if data.held_out else "", prepared.base),
            data_collator=prepared.collate,
            train_dataset=data.train,
            eval_dataset=self._filled(data.held_out, recipe.batch_size) or None,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)
        self.balance_loss, self.base_config = recipe.balance_loss, prepared.base.config
        self.kept_checkpoints = recipe.keep_checkpoints
        self._resumed_from: Path | None = None

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        # Cross-entropy is a sum over the labels of the whole step; the balance loss is a mean per batch and device.
        parts = self.current_gradient_accumulation_steps * processes().num_processes
        self.base_config.aux_loss_coef = self.balance_loss / parts
        options = {"use_cache": False, "skip_logits": True, "output_router_logits": bool(self.balance_loss)}
        return super().compute_loss(model, {**inputs, **options}, return_outputs, num_items_in_batch)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        start = time.perf_counter()
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise StudioError(
                f"The loss is not finite at step {self.state.global_step + 1}: lower learning_rate or max_grad_norm, "
                "and look for unusual rows. The last complete checkpoint is kept."
            )
        self.reporter.count_tokens(inputs["input_ids"].numel(), time.perf_counter() - start)
        return loss

    def create_optimizer(self, model: Any = None) -> Any:
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new:
            optimizer.register_load_state_dict_pre_hook(self._reordered)
        return optimizer

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        self._resumed_from = Path(checkpoint) if checkpoint else None
        super()._load_optimizer_and_scheduler(checkpoint)

    def _reordered(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return reordered(self._resumed_from, state, self._parameter_names()) if self._resumed_from else state

    def _parameter_names(self) -> list[str]:
        assert self.optimizer is not None
        return parameter_names(self.reporter.prepared.model, self.optimizer)

    @torch.no_grad()
    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        model: Any = self.model_wrapped
        model.eval()
        metrics = self._measured(model, self.get_eval_dataloader(eval_dataset))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _measured(self, model: Any, batches: Any) -> dict[str, float]:
        """Return the mean loss over all labels; Trainer's own metric is a mean of batch means."""
        total = torch.zeros(2, dtype=torch.float64)  # loss, labels
        for batch in batches:
            batch = self._prepare_inputs(batch)
            loss = model(**batch, use_cache=False, skip_logits=True, num_items_in_batch=1).loss
            total += torch.stack([loss.double(), (batch["labels"] != IGNORED).sum().double()]).cpu()
        loss, labels = self.accelerator.reduce(total.float().to(self.args.device), "sum").tolist()
        return {"eval_loss": loss / max(labels, 1)}

    def _filled(self, rows: list[Any], batch_size: int) -> list[Any]:
        """Pad with rows without labels, because accelerate would repeat rows, whose loss would count twice."""
        if processes().num_processes == 1 or not rows:
            return rows
        blank = [(token_ids, [False] * len(token_ids)) for token_ids, _ in rows[-1]]
        return [*rows, *[blank] * (-len(rows) % (batch_size * processes().num_processes))]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        best = self.state.best_model_checkpoint
        try:
            if self.args.should_save:
                (folder / WHOLE).unlink(missing_ok=True)  # of a damaged checkpoint, or of this step's first save
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                complete(folder, self._parameter_names())
                self.reporter.log_event("checkpoint", {"folder": folder.name})
                rotate(self.run.checkpoints, self.kept_checkpoints, self.state.best_model_checkpoint)
        except SAVE_ERRORS as error:
            # With several processes, the others would wait for this one.
            if not is_disk_error(error) or processes().num_processes > 1:
                raise
            shutil.rmtree(folder, ignore_errors=True)
            self.state.best_model_checkpoint = best
            self.reporter.warn(
                f"The checkpoint at step {self.state.global_step} can't be written ({error}). Free some space: "
                "training continues, and the last complete checkpoint is kept."
            )

    def _load_best_model(self) -> None:
        """Load the weights of the best checkpoint, or keep the last ones if it is damaged."""
        assert self.state.best_model_checkpoint is not None
        load_best(self.reporter, Path(self.state.best_model_checkpoint))


class FSDPTrainer(StudioTrainer):
    """Train a model that is sharded already: Trainer neither wraps nor moves it.

    Checkpoints hold whole tensors, as without FSDP.
    """

    def __init__(self, prepared: Prepared, run: Run, reporter: RunCallback) -> None:
        super().__init__(prepared, run, reporter)
        # Set after Trainer's __init__, which would refuse to save checkpoints; this class saves them itself.
        self.is_distributed_loading_by_transformers = True

    def create_accelerator_and_postprocess(self) -> None:
        with fsdp.hide_fsdp_env():
            super().create_accelerator_and_postprocess()

    def _defer_fsdp_gradient_reduction(self) -> Any:
        # Gradients stay sharded, even between the batches of a step.
        return nullcontext()

    def create_optimizer(self, model: Any = None) -> Any:
        fsdp.reshard(self.reporter.prepared.model)
        optimizer = super().create_optimizer(model)
        optimizer.register_load_state_dict_pre_hook(fsdp.split_state)
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        weights = fsdp.whole(fsdp.trained(self.reporter.prepared.model))
        if self.args.should_save:
            super()._save(output_dir, weights)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_adapter(self.model, Path(resume_from_checkpoint))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        assert self.optimizer is not None and self.lr_scheduler is not None
        optimizer = fsdp.whole(self.optimizer.state_dict())
        if self.args.should_save:
            torch.save(optimizer, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)


class Patience(EarlyStoppingCallback):
    """Early stopping whose counter is restored when a run is resumed."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        stored = state.stateful_callbacks.get(type(self).__name__, {})
        self.early_stopping_patience_counter = stored.get("attributes", {}).get("early_stopping_patience_counter", 0)


def is_disk_error(error: Exception) -> bool:
    return not isinstance(error, RuntimeError) or "PytorchStreamWriter" in str(error)


# What Python, safetensors and torch raise on a full disk; torch has no specific class for it.
SAVE_ERRORS = (OSError, SafetensorError, RuntimeError)


def training_arguments(recipe: Recipe, run: Run, measured: str, base: Any) -> TrainingArguments:
    """Convert a recipe to transformers' arguments.

    Args:
        measured: the metric that selects the best checkpoint; empty if nothing is evaluated.
        base: the base model.
    """
    evaluates = bool(measured)
    by_steps = "steps" if recipe.eval_steps else "epoch"
    arguments = TrainingArguments(
        output_dir=str(run.checkpoints),
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation,
        gradient_checkpointing=recipe.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=SCHEDULERS[recipe.lr_scheduler],
        warmup_steps=recipe.warmup_share,  # a value below 1 is a share of all steps
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        num_train_epochs=recipe.epochs,
        max_steps=recipe.max_steps or -1,
        seed=recipe.seed,
        logging_steps=recipe.log_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        eval_strategy=by_steps if evaluates else "no",
        eval_steps=recipe.eval_steps or None,
        save_strategy=by_steps,
        save_steps=recipe.save_steps,
        save_total_limit=None,  # Trainer would delete older checkpoints before the new one is complete
        load_best_model_at_end=evaluates,
        metric_for_best_model=measured or None,
        greater_is_better=measured != "eval_loss" if evaluates else None,
        fp16=base.dtype == torch.float16,  # scales the loss, so that small gradients don't become zero
        use_cpu=base.device.type == "cpu",
        dataloader_pin_memory=base.device.type != "cpu",
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
        # The graphs of the processes differ in adapters and 4-bit weights only, and all use the same parameters.
        ddp_find_unused_parameters=False,
    )
    # Trainer would copy the model to all GPUs in every step. Several GPUs need `accelerate launch`.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def load_best(reporter: RunCallback, best: Path) -> None:
    """Load the best checkpoint's weights; if it is damaged, warn and keep the present weights."""
    if problem := damage(best):
        reporter.warn(f"The best checkpoint, {best.name}, is not used: {problem}. The adapter has the last weights.")
    else:
        load_adapter(reporter.prepared.model, best)


def load_adapter(model: Any, folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    if fsdp.is_fsdp():
        fsdp.load_adapter(model, weights)
    else:
        peft.set_peft_model_state_dict(model, weights)
