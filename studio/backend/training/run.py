"""One training run on transformers.Trainer, from its first step or from its last checkpoint.

    run = start(recipe, name="dictionary")        # here and now; `python -m studio train` does this
    resume(run.id)
    python -m studio.backend.training.run RUN_ID         # a run that is queued in the store, as the page starts it

Under `accelerate launch` every process calls the same function; the first one writes the store, events and files.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

import peft
import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerState, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.utils import logging as transformers_logging

from jetmoe.adapters.files import WEIGHTS
from jetmoe.losses import IGNORED
from studio.backend.classification import evaluation
from studio.backend.classification.head import LengthGrouped, head_loss, measure, probabilities
from studio.backend.data.dataset import resolve, settings_of
from studio.backend.data.packing import pad_id
from studio.backend.models import catalog, placement
from studio.backend.recipe import Recipe
from studio.backend.runs.events import TrainEvent
from studio.backend.runs.run import Ending, Run
from studio.backend.runs.store import RunStore
from studio.backend.system.progress import Progress
from studio.backend.training import fsdp
from studio.backend.training.audit import audit_report, total_steps
from studio.backend.training.callback import RunCallback
from studio.backend.training.prepare import Prepared, head_scale, prepare, processes
from studio.errors import StudioError

logger = logging.getLogger(__name__)
# A checkpoint is only whole once this file is in it, which is written last.
WHOLE = "whole"
DATA = "data.json"
SCHEDULERS = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
OUT_OF_MEMORY = "while training: lower batch_size or max_length, or set gradient_checkpointing or precision=nf4"
Show = Callable[[TrainEvent], None]


def start(
    recipe: Recipe,
    name: str = "",
    progress: Progress = lambda fraction, text: None,
    show: Show = lambda event: None,
) -> Run:
    """Trains a new run to its end.

    Raises:
        StudioError: it can't start, or failed; the run is kept, with what went wrong.
    """
    check(recipe)
    return carry_out(_agree(lambda: RunStore().create(recipe, name, begin=True).id), progress, show)


def check(recipe: Recipe) -> None:
    """Raises StudioError: what can be seen at once is wrong, such as a model or a file that isn't there. No run is made
    of such a recipe."""
    catalog.entry(recipe.model)
    resolve(recipe.data)
    settings_of(recipe)
    fsdp.check(recipe)


def resume(run_id: str, progress: Progress = lambda fraction, text: None, show: Show = lambda event: None) -> Run:
    """Goes on from the last whole checkpoint, or from the start where there is none.

    Raises:
        StudioError: the run can't be resumed, or failed again.
    """
    return carry_out(_agree(lambda: RunStore().resume(run_id, begin=True).id), progress, show)


def carry_out(
    run_id: str,
    progress: Progress = lambda fraction, text: None,
    show: Show = lambda event: None,
    seconds: float = math.inf,
) -> Run:
    """Trains a queued run to its end; arguments and errors as of `start`.

    Args:
        seconds: after so many it is put back into the queue at the end of a step, to be resumed from a checkpoint.
    """
    until = time.monotonic() + seconds
    store, is_main = RunStore(), processes().is_main_process
    run = store.mark_running(run_id) if is_main else store.get(run_id)
    events = run.events if is_main else None
    try:
        with placement.shortage(OUT_OF_MEMORY):
            ending, message = _Training(run, store, progress, show, until).finish()
    except Exception as error:
        sentence = str(error) if isinstance(error, StudioError) else f"{type(error).__name__}: {error}"
        store.finish(run.id, "failed", sentence)  # whichever process saw it; the first word holds
        if events is not None:
            with suppress(OSError):  # on a full disk the store has the sentence
                events.append("failed", store.get(run.id).step, {"message": sentence})
        raise
    except KeyboardInterrupt:
        if events is not None:
            _stopped(store, run)
        raise
    if is_main:
        if ending == "queued":
            store.requeue(run.id)
        else:
            store.finish(run.id, ending, message)
    return store.get(run.id)


def _stopped(store: RunStore, run: Run) -> None:
    """From the keyboard, or by a signal where waiting for the end of a step takes too long."""
    if store.cancel_requested(run.id):
        store.finish(run.id, "cancelled", "Cancelled before a step ended. It can be resumed from its last checkpoint.")
    else:
        store.finish(run.id, "interrupted", "Stopped from outside. It can be resumed.")


def last_checkpoint(run: Run) -> Path | None:
    """The newest checkpoint that was written to its end."""
    whole = [file.parent for file in run.checkpoints.glob(f"checkpoint-*/{WHOLE}")]
    return max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


class _Training:
    def __init__(self, run: Run, store: RunStore, progress: Progress, show: Show, until: float) -> None:
        self.run, self.store = run, store
        self.recipe = run.recipe()
        self.prepared = prepare(self.recipe, progress)
        self.is_main = processes().is_main_process
        self.checkpoint = last_checkpoint(run)
        if self.is_main:
            _same_data(run, self.prepared)
        self.reporter = RunCallback(run, store, self.prepared, show, total_steps(self.prepared), until)
        self.trainer = _trainer(self.recipe)(self.prepared, run, self.reporter)

    def finish(self) -> tuple[Ending | Literal["queued"], str]:
        """Trains and saves the adapter; how it ended, and what to say of it."""
        if self.checkpoint is None:
            self._before()
        if self.checkpoint is None or not self._is_over(self.checkpoint):
            self.trainer.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
        stopped = self._stopped_early()
        is_whole = not (stopped or self.reporter.out_of_time)
        if isinstance(self.trainer, HeadTrainer) and self.prepared.data.held_out and is_whole:
            self._evaluate(self.trainer)
        self._save()
        if not self.is_main:
            return "done", ""
        return ("queued", "") if not (stopped or is_whole) else self.reporter.ended(stopped)

    def _stopped_early(self) -> bool:
        """Whether a person asked for it; the first process's word counts for all."""
        asked = [self.is_main and self.store.cancel_requested(self.run.id)]
        return bool(broadcast_object_list(asked)[0])

    def _evaluate(self, trainer: HeadTrainer) -> None:
        """Measures the finished head on the held-out rows, and fits its temperature to them."""
        logits = trainer.held_out_logits()  # [T, C]
        data, base = self.prepared.data, self.prepared.base
        assert data.labels is not None and data.measured is not None
        if not self.is_main:
            return
        scores = probabilities(data.labels.problem, logits).numpy()
        of = f"{len(scores):,} held-out rows of {data.dataset.path.name}"
        report = evaluation.evaluate(data.measured, scores, of, data.learned)
        if data.labels.problem == "single_label" and not fsdp.is_fsdp():
            report["profile"] = evaluation.profile(base, data.measured, data.held_out, pad_id(self.prepared.tokenizer))
        if report["temperature"] is not None:
            base.config.score_temperature = report["temperature"]["value"]
        evaluation.write(report, self.run)

    def _is_over(self, checkpoint: Path) -> bool:
        """Whether nothing but the end of the run was missing; its weights are then the run's. Trainer itself would go
        one step further."""
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if state.global_step < state.max_steps:
            return False
        best = checkpoint.parent / Path(state.best_model_checkpoint or checkpoint).name
        _load_adapter(self.prepared.model, best)
        self.reporter.step, self.reporter.steps, self.reporter.best = (
            state.global_step,
            state.max_steps,
            state.best_metric,
        )
        return True

    def _before(self) -> None:
        """What everything later is compared with."""
        if self.is_main or fsdp.is_fsdp():
            self.reporter.log_event("audit", audit_report(self.prepared))
        if fsdp.is_fsdp() and self.prepared.data.prompts:
            self.reporter.warn(
                "The sample prompts are not answered while the model is spread over devices, where each token would "
                "gather all weights: try them on the finished adapter."
            )
        if self.prepared.data.held_out:
            self.trainer.evaluate()
        else:
            self.reporter.evaluate_samples()

    def _save(self) -> None:
        model = self.prepared.model
        weights = fsdp.whole(fsdp.trained(model)) if fsdp.is_fsdp() else None
        if not self.is_main:
            return
        # Not the folder that it was loaded from, which says nothing on another machine. Checkpoints name that folder:
        # there PEFT finds the base's configuration, which it would ask the hub for otherwise.
        model.peft_config[model.active_adapter].base_model_name_or_path = self.recipe.model
        part = self.run.adapter.with_name("adapter.part")  # an adapter that a chat reads is always a whole one
        try:
            shutil.rmtree(part, ignore_errors=True)
            model.save_pretrained(part, save_embedding_layers=False, state_dict=weights)
            if self.prepared.data.labels is not None:
                save_labels(self.prepared.base.config, part)
            shutil.rmtree(self.run.adapter, ignore_errors=True)
            part.rename(self.run.adapter)
        except (OSError, SafetensorError) as error:
            raise StudioError(
                f"The adapter can't be written to {self.run.adapter} ({error}). Free some space and resume the run: "
                "its last checkpoint is whole."
            ) from error


class StudioTrainer(Trainer):
    """transformers.Trainer with a loss that never has all logits, guarded steps and whole checkpoints."""

    def __init__(self, prepared: Prepared, run: Run, reporter: RunCallback) -> None:
        recipe, data = prepared.recipe, prepared.data
        self.reporter, self.run = reporter, run
        callbacks: list[Any] = [reporter]
        if recipe.early_stopping and data.held_out:
            callbacks.append(Patience(recipe.early_stopping))
        super().__init__(
            model=prepared.model,
            args=_arguments(recipe, run, data.measure if data.held_out else "", prepared.base.device),
            data_collator=prepared.collate,
            train_dataset=data.train,
            eval_dataset=self._filled(data.held_out, recipe.batch_size) or None,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)
        self.balance_loss, self.base_config = recipe.balance_loss, prepared.base.config

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        # Cross-entropy is a sum over the whole step's labels, the balance a mean of each batch on each device.
        parts = self.current_gradient_accumulation_steps * processes().num_processes
        self.base_config.aux_loss_coef = self.balance_loss / parts
        options = {"use_cache": False, "skip_logits": True, "output_router_logits": bool(self.balance_loss)}
        return super().compute_loss(model, {**inputs, **options}, return_outputs, num_items_in_batch)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        start = time.perf_counter()
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise StudioError(
                f"The loss is not a number any more at step {self.state.global_step + 1}: lower learning_rate or "
                "max_grad_norm, and look for odd rows. The last whole checkpoint is kept."
            )
        self.reporter.count_tokens(inputs["input_ids"].numel(), time.perf_counter() - start)
        return loss

    @torch.no_grad()
    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        model: Any = self.model_wrapped
        model.eval()
        metrics = self._measured(model, self.get_eval_dataloader(eval_dataset))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _measured(self, model: Any, batches: Any) -> dict[str, float]:
        """The mean over all labels, where Trainer's own is a mean of the batches' means."""
        total = torch.zeros(2, dtype=torch.float64)  # loss, labels
        for batch in batches:
            batch = self._prepare_inputs(batch)
            loss = model(**batch, use_cache=False, skip_logits=True, num_items_in_batch=1).loss
            total += torch.stack([loss.double(), (batch["labels"] != IGNORED).sum().double()]).cpu()
        loss, labels = self.accelerator.reduce(total.float().to(self.args.device), "sum").tolist()
        return {"eval_loss": loss / max(labels, 1)}

    def _filled(self, rows: list[Any], batch_size: int) -> list[Any]:
        """With rows that have no labels where accelerate would repeat some, whose loss would count twice."""
        if processes().num_processes == 1 or not rows:
            return rows
        blank = [(token_ids, [False] * len(token_ids)) for token_ids, _ in rows[-1]]
        return [*rows, *[blank] * (-len(rows) % (batch_size * processes().num_processes))]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        best = self.state.best_model_checkpoint
        try:
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                (folder / WHOLE).touch()
                self.reporter.log_event("checkpoint", {"folder": folder.name})
        except SAVE_ERRORS as error:
            # Of several processes the others wait for this one.
            if not _is_of_disk(error) or processes().num_processes > 1:
                raise
            shutil.rmtree(folder, ignore_errors=True)
            self.state.best_model_checkpoint = best
            self.reporter.warn(
                f"The checkpoint at step {self.state.global_step} can't be written ({error}). Free some space: "
                "training goes on, and the last whole checkpoint is kept."
            )


class SpreadTrainer(StudioTrainer):
    """For a model that is spread over devices already: Trainer neither wraps nor moves it, and what it saves and loads
    is whole, as without shards."""

    def __init__(self, prepared: Prepared, run: Run, reporter: RunCallback) -> None:
        super().__init__(prepared, run, reporter)
        # Only now: given to Trainer's own __init__, it refuses checkpoints, which are made here.
        self.is_distributed_loading_by_transformers = True

    def create_accelerator_and_postprocess(self) -> None:
        with fsdp.hide_fsdp_env():
            super().create_accelerator_and_postprocess()

    def _defer_fsdp_gradient_reduction(self) -> Any:
        # No device holds whole gradients, not even between the batches of a step.
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
        _load_adapter(self.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        _load_adapter(self.model, Path(self.state.best_model_checkpoint))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        assert self.optimizer is not None and self.lr_scheduler is not None
        optimizer = fsdp.whole(self.optimizer.state_dict())
        if self.args.should_save:
            torch.save(optimizer, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)


class HeadTrainer(StudioTrainer):
    """For a classification head: batches of texts of about one length, and measures beside the loss."""

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
        """Rows of the whole step; Trainer itself would leave out a number that is -100."""
        rows = torch.tensor(sum(len(batch["labels"]) for batch in batch_samples), device=device)
        return self.accelerator.gather(rows).sum()

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGrouped:
        lengths = [len(token_ids) for token_ids, _ in self.reporter.prepared.data.train]
        # The rows of a step, however they are spread over devices and batches.
        a_step = self.args.gradient_accumulation_steps * processes().num_processes
        return LengthGrouped(lengths, self.args.per_device_train_batch_size * a_step, self.args.seed)

    def _measured(self, model: Any, batches: Any) -> dict[str, float]:
        logits, targets = self._answers(model, batches)
        figures = {"loss": float(head_loss(self.labels, logits, targets)), **measure(self.labels, logits, targets)}
        return {f"eval_{name}": value for name, value in figures.items()}

    @torch.no_grad()
    def held_out_logits(self) -> Tensor:
        """`[T, C]` in fp32, in the order of the rows."""
        model: Any = self.model_wrapped
        model.eval()
        return self._answers(model, self.get_eval_dataloader())[0]

    def _answers(self, model: Any, batches: Any) -> tuple[Tensor, Tensor]:
        """Logits `[T, C]` and targets of all processes' rows."""
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
        """`gather_for_metrics` leaves out what accelerate repeats."""
        return rows


class SpreadHeadTrainer(HeadTrainer, SpreadTrainer):
    """A classification head on a model that is spread over devices."""


def _slow_down(optimizer: Any, parameter: Tensor, scale: float) -> None:
    """Gives the parameter a group of its own, whose learning rate is so many times lower."""
    (group,) = [each for each in optimizer.param_groups if any(one is parameter for one in each["params"])]
    group["params"] = [one for one in group["params"] if one is not parameter]
    optimizer.add_param_group({**group, "params": [parameter], "lr": group["lr"] / scale})


def _trainer(recipe: Recipe) -> type[StudioTrainer]:
    if recipe.task == "classify":
        return SpreadHeadTrainer if fsdp.is_fsdp() else HeadTrainer
    return SpreadTrainer if fsdp.is_fsdp() else StudioTrainer


class Patience(EarlyStoppingCallback):
    """Goes on counting where a resumed run was."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        stored = state.stateful_callbacks.get(type(self).__name__, {})
        self.early_stopping_patience_counter = stored.get("attributes", {}).get("early_stopping_patience_counter", 0)


def _is_of_disk(error: Exception) -> bool:
    return not isinstance(error, RuntimeError) or "PytorchStreamWriter" in str(error)


# What a full disk raises, by whom: Python, safetensors, and torch, which has no class of its own for it.
SAVE_ERRORS = (OSError, SafetensorError, RuntimeError)


def _arguments(recipe: Recipe, run: Run, measured: str, device: torch.device) -> TrainingArguments:
    """Args: measured: what is better at the best checkpoint; empty where nothing is evaluated."""
    evaluates = bool(measured)
    by_steps = "steps" if recipe.eval_steps else "epoch"
    return TrainingArguments(
        output_dir=str(run.checkpoints),
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation,
        gradient_checkpointing=recipe.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=SCHEDULERS[recipe.lr_scheduler],
        warmup_steps=recipe.warmup_share,  # below 1 it is a share
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
        save_total_limit=recipe.keep_checkpoints + evaluates,  # Trainer counts the best one too
        load_best_model_at_end=evaluates,
        metric_for_best_model=measured or None,
        greater_is_better=measured != "eval_loss" if evaluates else None,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type != "cpu",
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
        # Only adapters and 4-bit weights differ between processes' graphs, never which parameters take part.
        ddp_find_unused_parameters=False,
    )


def _load_adapter(model: Any, folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    if fsdp.is_fsdp():
        fsdp.load_adapter(model, weights)
    else:
        peft.set_peft_model_state_dict(model, weights)


def save_labels(config: Any, folder: Path) -> None:
    """Writes the configuration of a classifier beside its adapter, which holds none: without it a head has no names.
    How the base was held in training is nobody else's business."""
    own = copy.deepcopy(config)
    for name in ("quantization_config", "dtype"):
        if getattr(own, name, None) is not None:
            delattr(own, name)
    own.save_pretrained(folder)


def _same_data(run: Run, prepared: Prepared) -> None:
    """Raises StudioError: data file or number of processes are others than when the run began."""
    file, now = run.folder / DATA, prepared.data.report() | {"processes": processes().num_processes}
    if not file.is_file():
        file.write_text(json.dumps(now))
        return
    then = json.loads(file.read_text())
    if then["processes"] != now["processes"]:
        raise StudioError(
            f"This run began on {then['processes']} processes and can't go on the same on {now['processes']}: use "
            f"`accelerate launch --num_processes {then['processes']} ... -m studio runs resume {run.id[:8]}`."
        )
    if then["fingerprint"] != now["fingerprint"]:
        raise StudioError(
            f"{now['file']} has changed since this run began, so it can't go on as it was. Put the old file back, or "
            "start a new run."
        )


def _agree(make: Callable[[], str]) -> str:
    """What the first process made, in all of them."""
    made = [make() if processes().is_main_process else ""]
    return broadcast_object_list(made)[0]


def main() -> int:
    """The process that the page starts for a queued run; returns the exit code."""
    transformers_logging.disable_progress_bar()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as from the keyboard
    try:
        carry_out(sys.argv[1])
    except KeyboardInterrupt:
        return 130
    except StudioError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
