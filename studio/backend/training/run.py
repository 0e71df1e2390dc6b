"""One training run on transformers.Trainer, from its first step or from its last checkpoint.

    run = start(recipe, name="dictionary")        # here and now; `python -m studio train` does this
    resume(run.id)
    python -m studio.backend.training.run RUN_ID         # a run that is queued in the store, as the page starts it

Under `accelerate launch` every process calls the same function; the first one writes the store, events and files.
"""

from __future__ import annotations

import json
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
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging as transformers_logging

from studio.backend.classification import evaluation
from studio.backend.classification.head import probabilities
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
from studio.backend.training.head_trainer import HeadTrainer, save_labels, trainer_class
from studio.backend.training.prepare import Prepared, prepare, processes
from studio.backend.training.trainer import last_checkpoint, load_adapter
from studio.errors import StudioError

logger = logging.getLogger(__name__)
DATA = "data.json"
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
        self.trainer = trainer_class(self.recipe)(self.prepared, run, self.reporter)

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
        load_adapter(self.prepared.model, best)
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
