"""One training run on transformers.Trainer, from its first step or from its last checkpoint.

    run = start(recipe, name="dictionary")        # in this process, as `python -m studio train` does
    resume(run.id)
    python -m studio.backend.training.run RUN_ID         # a queued run, as the page starts it

Under `accelerate launch` every process calls the same function; only the first one writes the store, events and files.
"""

from __future__ import annotations

import logging
import math
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch import Tensor
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging as transformers_logging

from studio.backend.adapters.checksums import write_checksums
from studio.backend.data.dataset import resolve, settings_of
from studio.backend.models import catalog, placement
from studio.backend.recipe import Recipe
from studio.backend.runs.events import TrainEvent
from studio.backend.runs.run import Ending, Run
from studio.backend.runs.store import RunStore
from studio.backend.system.files import is_full, publish, unwritable
from studio.backend.system.progress import Progress
from studio.backend.training import fitted_head, fsdp, head_evaluation
from studio.backend.training.audit import audit_report, checked_forecast, total_steps
from studio.backend.training.callback import RunCallback
from studio.backend.training.checkpoint import last_checkpoint, last_step
from studio.backend.training.cpu_memory import require_memory
from studio.backend.training.head_trainer import HeadTrainer, save_labels, trainer_class
from studio.backend.training.prepare import prepare, processes
from studio.backend.training.preparing import Preparing
from studio.backend.training.same_data import require_same_data
from studio.backend.training.trainer import load_adapter, load_best
from studio.errors import StudioError

logger = logging.getLogger(__name__)
OUT_OF_MEMORY = "while training: lower batch_size or max_length, or set gradient_checkpointing or precision=nf4"
Show = Callable[[TrainEvent], None]


def start(
    recipe: Recipe,
    name: str = "",
    progress: Progress = lambda fraction, text: None,
    show: Show = lambda event: None,
) -> Run:
    """Train a new run to its end.

    Raises:
        StudioError: the run can't start, or failed; a failed run is kept with its message.
    """
    check(recipe)
    return carry_out(_agree(lambda: RunStore().create(recipe, name, begin=True).id), progress, show)


def check(recipe: Recipe) -> None:
    """Check a recipe before a run is created.

    Raises:
        StudioError: something is wrong that needs no model to detect, such as a missing model or file.
    """
    catalog.entry(recipe.model)
    resolve(recipe.data)
    settings_of(recipe)
    fsdp.check(recipe)
    if recipe.method == "probe" and processes().num_processes > 1:
        raise StudioError("method=probe runs in one process. Start it without accelerate, or set method to lora.")


def resume(run_id: str, progress: Progress = lambda fraction, text: None, show: Show = lambda event: None) -> Run:
    """Resume a run from its last complete checkpoint, or from the start if there is none.

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
    """Train a queued run to its end; arguments and errors as for `start`.

    Args:
        seconds: time limit, after which the run goes back into the queue at the end of a step, with a checkpoint.
    """
    until = time.monotonic() + seconds
    store, is_main = RunStore(), processes().is_main_process
    run = store.mark_running(run_id) if is_main else store.get(run_id)
    if is_main:
        store.update(run.id, step=last_step(run))
    events = run.events if is_main else None
    try:
        with placement.shortage(OUT_OF_MEMORY):
            ending, message = _Training(run, store, progress, show, until).finish()
    except Exception as error:
        sentence = _sentence(run, error)
        store.finish(run.id, "failed", sentence)  # any process may fail; the first result stored wins
        if events is not None:
            with suppress(OSError):  # on a full disk, the store still has the message
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


def _sentence(run: Run, error: Exception) -> str:
    """Return why the run failed, without paths and other details of an unexpected error; those are in the log."""
    if isinstance(error, StudioError):
        return str(error)
    if isinstance(error, OSError) and is_full(error):
        return str(unwritable(run.folder, error, "The run can be resumed."))
    return f"An internal error ({type(error).__name__}) ended the run. The log has the details; the run can be resumed."


def _stopped(store: RunStore, run: Run) -> None:
    """Store the outcome of a run that was stopped by Ctrl+C, or by a signal because its step took too long."""
    step = last_step(run)
    store.update(run.id, step=step)
    rest = f"It can be resumed from step {step}." if step else "No step was finished: resuming starts from the first."
    if store.cancel_requested(run.id):
        store.finish(run.id, "cancelled", f"Cancelled. {rest}")
    else:
        store.finish(run.id, "interrupted", f"Stopped by Ctrl+C or a signal. {rest}")


class _Training:
    def __init__(self, run: Run, store: RunStore, progress: Progress, show: Show, until: float) -> None:
        self.run, self.store = run, store
        self.recipe = run.recipe()
        self.is_main = processes().is_main_process
        self.preparing = Preparing(run if self.is_main else None, self.recipe, show)
        self.prepared = prepare(self.recipe, progress, self.preparing.begin)
        self.damaged: list[str] = []
        self.checkpoint = last_checkpoint(run, self.damaged.append)
        if self.is_main:
            require_same_data(run, self.prepared)
        self.reporter = RunCallback(run, store, self.prepared, show, total_steps(self.prepared), until)
        self.fitted: fitted_head.FittedHead | None = None
        self.words: head_evaluation.Words | None = None
        self.trainer = trainer_class(self.recipe)(self.prepared, run, self.reporter)

    def finish(self) -> tuple[Ending | Literal["queued"], str]:
        """Train and save the adapter; return the outcome and its message."""
        self._tell_start()
        require_memory(self.prepared)
        if self.checkpoint is None:
            self._audit()
        if isinstance(self.trainer, HeadTrainer) and not self._fit_head():
            return ("queued", "") if self.reporter.out_of_time else self.reporter.cancelled_reading()
        if self.checkpoint is None:
            self._baseline()
        if self.recipe.method == "lora" and (self.checkpoint is None or not self._is_over(self.checkpoint)):
            self._train()
        stopped = self._stopped_early()
        is_whole = not (stopped or self.reporter.out_of_time)
        if isinstance(self.trainer, HeadTrainer) and is_whole:
            self._complete(self.trainer)
        self._save()
        if not self.is_main:
            return "done", ""
        return ("queued", "") if not (stopped or is_whole) else self.reporter.ended(stopped)

    def _tell_start(self) -> None:
        """Store where a resumed run starts, and warn if damaged checkpoints make it start earlier."""
        start = f"from {self.checkpoint.name}" if self.checkpoint else "at step 1"
        for problem in self.damaged:
            self.reporter.warn(f"{problem}. The run resumes {start}.")
        if self.is_main and (self.checkpoint or self.damaged):
            self.store.update(self.run.id, message=f"Resumed {start}.")

    def _train(self) -> None:
        try:
            self.trainer.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
        except KeyboardInterrupt:
            if self._can_save():
                self.trainer._save_checkpoint(self.trainer.model, trial=None)
            raise

    def _can_save(self) -> bool:
        """Return whether an interrupted training is at a new step, and its weights are those of that step."""
        is_new = self.trainer.state.global_step > last_step(self.run)
        # Several processes are interrupted at different places, and would wait for each other.
        return is_new and processes().num_processes == 1 and not self.reporter.is_updating

    def _fit_head(self) -> bool:
        """Fit the head to the frozen model; return False if the run was cancelled or out of time meanwhile."""
        if processes().num_processes > 1:
            if self.checkpoint is None:
                self.reporter.warn("The head starts at random: only a run of one process fits it before training.")
            return True
        self.preparing.begin("head")
        self.fitted = fitted_head.fit(self.prepared, self.run, self.reporter.keep_reading)
        if self.fitted is not None and self.checkpoint is None:
            self.fitted.use(self.prepared)
        return self.fitted is not None

    def _held_out_logits(self, trainer: HeadTrainer) -> Tensor:
        """Return the logits `[T, C]` of the held-out rows; set the fitted head again if training made it worse."""
        if self.fitted is not None and self.recipe.method == "probe":
            return self.fitted.held_out
        logits = trainer.held_out_logits()
        if self.fitted is None or not self.fitted.is_better(self.prepared.data, logits):
            return logits
        self.fitted.use(self.prepared)
        self.reporter.warn("LoRA did not improve on the fitted head, so the fitted head is kept without LoRA.")
        return self.fitted.held_out

    def _stopped_early(self) -> bool:
        """Return whether the run was cancelled; the first process decides for all."""
        asked = [self.is_main and self.store.cancel_requested(self.run.id)]
        return bool(broadcast_object_list(asked)[0])

    def _complete(self, trainer: HeadTrainer) -> None:
        """Fit TF-IDF to the rows of the finished head, and evaluate both on the held-out rows."""
        logits = self._held_out_logits(trainer) if self.prepared.data.held_out else None
        if not self.is_main:
            return
        if logits is not None or self.recipe.with_tfidf:
            self.words = head_evaluation.fit_words(self.prepared, self.fitted, self.reporter.warn)
        if logits is not None:
            head_evaluation.evaluate(self.prepared, self.run, logits, self.fitted, self.words)

    def _is_over(self, checkpoint: Path) -> bool:
        """Return whether the checkpoint is at the last step, and load the weights of the best checkpoint if it is.

        Trainer itself would train one more step.
        """
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if state.global_step < state.max_steps:
            return False
        load_adapter(self.prepared.model, checkpoint)
        load_best(self.reporter, checkpoint.parent / Path(state.best_model_checkpoint or checkpoint).name)
        self.reporter.step, self.reporter.steps, self.reporter.best = (
            state.global_step,
            state.max_steps,
            state.best_metric,
        )
        return True

    def _audit(self) -> None:
        """Log the audit of the run before it starts."""
        checked = checked_forecast(self.run, self.prepared)
        self.preparing.begin("trial", "measured by Check" if checked else "")
        if self.is_main or fsdp.is_fsdp():
            self.reporter.log_event("audit", audit_report(self.prepared, checked))
        if fsdp.is_fsdp() and self.prepared.data.prompts:
            self.reporter.warn(
                "The sample prompts are not answered with FSDP, because each token would gather all weights: try them "
                "on the finished adapter."
            )

    def _baseline(self) -> None:
        """Evaluate the base model, or the head that was fitted to it, before training."""
        if self.fitted is not None and self.fitted.figures:
            self.reporter.fitted(self.fitted.figures, self.recipe.method == "probe")
            self.reporter.evaluate_samples()
        elif self.prepared.data.held_out:
            self.preparing.begin("baseline")
            self.trainer.evaluate()
        else:
            self.preparing.begin("samples")
            self.reporter.evaluate_samples()

    def _save(self) -> None:
        model = self.prepared.model
        weights = fsdp.whole(fsdp.trained(model)) if fsdp.is_fsdp() else None
        if not self.is_main:
            return
        # The model id instead of the local folder, which is meaningless on another machine. Checkpoints keep the
        # folder, because PEFT reads the base model's configuration there; otherwise it would ask the hub.
        model.peft_config[model.active_adapter].base_model_name_or_path = self.recipe.model
        part = self.run.adapter.with_name("adapter.part")  # renamed at the end, so a chat never reads half an adapter
        try:
            shutil.rmtree(part, ignore_errors=True)
            model.save_pretrained(part, save_embedding_layers=False, state_dict=weights)
            if self.prepared.data.labels is not None:
                save_labels(self.prepared.base.config, part)
            if self.words is not None and self.recipe.with_tfidf:
                self.words.both.save(part)
            write_checksums(part)
            shutil.rmtree(self.run.adapter, ignore_errors=True)
            publish(part, self.run.adapter)
            fitted_head.forget(self.run)
        except (OSError, SafetensorError) as error:
            raise StudioError(
                f"The adapter can't be written to {self.run.adapter} ({error}). Free some space and resume the run: "
                "its last checkpoint is complete."
            ) from error


def _agree(make: Callable[[], str]) -> str:
    """Call the function in the first process and return its result in all processes."""
    made = [make() if processes().is_main_process else ""]
    return broadcast_object_list(made)[0]


def _interrupt(number: int, frame: object) -> None:
    """Raise KeyboardInterrupt, like Ctrl+C. Later signals are ignored, because saving takes a moment."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """Carry out the queued run that the page started this process for; return the exit code."""
    transformers_logging.disable_progress_bar()
    signal.signal(signal.SIGTERM, _interrupt)
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
