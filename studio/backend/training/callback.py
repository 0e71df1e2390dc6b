"""A callback of transformers.Trainer that appends `TrainEvent`s and stops a run that diverges.

Only the first of several processes writes. Every evaluation also answers the sample prompts and measures the routing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

import psutil
import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from studio.backend.chat.decoder import Decoder
from studio.backend.data.prompt import encode_chat
from studio.backend.runs.events import TrainEvent, TrainKind
from studio.backend.runs.run import Ending, Run
from studio.backend.runs.store import RunStore
from studio.backend.training import fsdp
from studio.backend.training.drift_probe import DriftProbe
from studio.backend.training.prepare import Prepared, processes
from studio.errors import StudioError

GIB = 2**30
# A run has diverged when its smoothed loss is above this multiple of its first loss, plus 1.
DIVERGED = 3.0
SMOOTHING = 0.9
# After this many steps every factor should have had a gradient. Gradients of A are zero until B has changed, and the
# learning rate of the first step is 0.
GRADIENT_STEPS = 3
CANCEL_POLL_S = 1.0
READ_POLL_S = 2.0
MEASURES = {"eval_loss": "held-out loss", "eval_macro_f1": "held-out macro-F1"}


class RunCallback(TrainerCallback):
    """Log the events of a run and stop it when it is cancelled, diverges or runs out of time.

    Args:
        until: when to stop an unfinished run, on the clock of `time.monotonic`.
    """

    def __init__(
        self,
        run: Run,
        store: RunStore,
        prepared: Prepared,
        show: Callable[[TrainEvent], None],
        steps: int,
        until: float = math.inf,
    ) -> None:
        self.until, self.out_of_time = until, False
        self.run, self.store, self.prepared, self.show, self.steps = run, store, prepared, show, steps
        self.is_main = processes().is_main_process
        self.step = 0
        self.measure = prepared.data.measure
        self.best: float | None = None
        """The best value of `measure` so far; `best_loss` is that of the held-out loss."""
        self.best_loss = run.best_eval_loss
        self.first_loss = self.smooth_loss = math.nan
        self.seen: dict[str, bool] = {}
        self.is_updating = False
        """Whether the optimizer may have changed some of the weights of an unfinished step."""
        self.started = self.asked_at = self.read_at = time.monotonic()
        self.start_step = 0
        self.tokens = 0
        """Tokens of the training steps so far; `step_s` has their seconds."""
        self.step_s = 0.0
        # A sharded model runs in all processes or in none.
        probes = self.is_main or fsdp.is_fsdp()
        self.probe = DriftProbe(prepared.model, prepared.tokenizer, prepared.recipe.probe_text) if probes else None

    # --- events

    def warn(self, sentence: str) -> None:
        self.log_event("warning", {"message": sentence})

    def ended(self, asked_to_stop: bool) -> tuple[Ending, str]:
        """Log how the run ended; return the outcome and its message."""
        ending: Literal["cancelled", "done"] = "cancelled" if asked_to_stop and self.step < self.steps else "done"
        best = "" if self.best is None else f", the best {MEASURES[self.measure]} is {self.best:.3f}"
        done = f"after {self.step} of {self.steps} steps" if self.steps else "without training steps"
        message = f"{ending.capitalize()} {done}{best}."
        self.log_event(ending, {"message": message})
        return ending, message

    def log_event(self, kind: TrainKind, values: dict[str, Any]) -> None:
        if self.is_main:
            event = self.run.events.append(kind, self.step, values)
            with suppress(BrokenPipeError):  # a closed terminal does not end the run
                self.show(event)

    @torch.no_grad()
    def evaluate_samples(self) -> None:
        """Answer the sample prompts and measure the routing."""
        if self.probe is None:
            return
        model = self.prepared.model
        was_training = model.training
        model.eval()
        self.log_event("routing", self.probe.measure(model))
        for messages in [] if fsdp.is_fsdp() else self.prepared.data.prompts:
            self.log_event("sample", {"prompt": messages[-1]["content"], "answer": self._answer(messages)})
        model.train(was_training)

    def count_tokens(self, tokens: int, seconds: float) -> None:
        """Count the tokens of a batch, for all devices, and its seconds."""
        self.tokens += tokens * processes().num_processes
        self.step_s += seconds

    def keep_reading(self, done: int, rows: int) -> bool:
        """Log and store how many rows have been read before training; return whether to read more."""
        now = time.monotonic()
        if now - self.read_at >= READ_POLL_S or done == rows:
            self.read_at = now
            self.log_event("reading", {"done": done, "rows": rows})
            self._write_down(message="" if done == rows else f"Reading the rows: {done:,} of {rows:,}.")
        self.out_of_time = now > self.until
        return done == rows or not (self._cancelled() or self.out_of_time)

    def cancelled_reading(self) -> tuple[Ending, str]:
        """Log that the run was cancelled before training; return the outcome and its message."""
        message = "Cancelled while rows were read. Resume the run to continue with the rest of them."
        self.log_event("cancelled", {"message": message})
        return "cancelled", message

    def fitted(self, figures: dict[str, float], is_result: bool) -> None:
        """Log the metrics of a fitted head, which training starts from, or which are the result of the run."""
        self.log_event("eval", figures)
        if is_result:
            self.best, self.best_loss = figures[self.measure], figures["eval_loss"]
            self._write_down(best_eval_loss=self.best_loss)

    # --- transformers' hooks

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start_step = self.step = state.global_step
        self.steps = state.max_steps
        self.best = state.best_metric
        self.started = time.monotonic()

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        # A step with gradient accumulation takes long. Its batches so far are lost, and the steps before it are saved.
        return self._stop(control) if self._cancelled() else control

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.is_updating = True
        done = state.global_step - self.start_step
        if done >= GRADIENT_STEPS:
            return
        learning = {name: each.grad for name, each in self.prepared.base.named_parameters() if each.requires_grad}
        for name, has in zip(learning, fsdp.nonzero([*learning.values()]), strict=True):
            self.seen[name] = self.seen.get(name, False) or has
        if done == GRADIENT_STEPS - 1:
            self._check_gradients()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self.step, self.is_updating = state.global_step, False
        self.out_of_time = self.step < state.max_steps and time.monotonic() > self.until
        return self._stop(control) if self._cancelled() or self.out_of_time else control

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.step = state.global_step
        if "loss" not in logs:
            return
        self.log_event("log", {**logs, **self._pace(), "memory_gib": _memory_gib()})
        self._write_down(step=self.step)
        self._guard(float(logs["loss"]), float(logs.get("grad_norm", 0.0)))

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self.step = state.global_step
        self.log_event("eval", metrics)
        if self.step:  # step 0 evaluates the base model
            better = min if self.measure == "eval_loss" else max
            now = metrics[self.measure]
            self.best = now if self.best is None else better(now, self.best)
            self.best_loss = min(metrics["eval_loss"], math.inf if self.best_loss is None else self.best_loss)
            self._write_down(best_eval_loss=self.best_loss)
        self.evaluate_samples()

    # --- helpers

    def _stop(self, control: Any) -> Any:
        control.should_training_stop = control.should_save = True
        return control

    def _write_down(self, **values: Any) -> None:
        """Store values for the list of runs. The events have them too, so training continues if the write fails."""
        if not self.is_main:
            return
        try:
            self.store.update(self.run.id, **values)
        except StudioError as error:
            self.warn(str(error))

    def _answer(self, messages: list[dict[str, str]]) -> str:
        """Generate an answer by greedy decoding."""
        model, tokenizer = self.prepared.base, self.prepared.tokenizer
        limit = self.prepared.recipe.sample_tokens
        prompt = encode_chat(tokenizer, messages)[-(model.config.max_position_embeddings - limit) :]
        decoder = Decoder(model, min(model.config.max_position_embeddings, len(prompt) + limit), record=False)
        logits = decoder.prefill(prompt, limit)
        answer: list[int] = []
        while len(answer) < limit and (token := int(logits.argmax())) != tokenizer.eos_token_id:
            answer.append(token)
            if len(answer) < limit:
                logits = decoder.step(token)
        return str(tokenizer.decode(answer))

    def _check_gradients(self) -> None:
        """Log which of the trained tensors had a gradient, and warn about those without one."""
        parts: dict[str, dict[str, int]] = {}
        family = self.prepared.base.config.family
        for name, has in self.seen.items():
            part = parts.setdefault(family.part_of(name), {"tensors": 0, "without_gradient": 0})
            part["tensors"] += 1
            part["without_gradient"] += not has
        self.log_event("audit", {"gradients": parts})
        for name, counts in parts.items():
            if counts["without_gradient"]:
                self.warn(
                    f"{counts['without_gradient']} of {counts['tensors']} trained tensors of the {name} had no gradient"
                    f" in the first {GRADIENT_STEPS} steps: no token of these rows reaches them."
                )

    def _pace(self) -> dict[str, float]:
        """Return speed, progress and the time left, which is extrapolated from the steps so far with evaluations."""
        done = self.step - self.start_step
        elapsed = time.monotonic() - self.started
        return {
            "tok_s": round(self.tokens / self.step_s, 1) if self.step_s else 0.0,
            "progress": self.step / max(self.steps, 1),
            "elapsed_s": round(elapsed, 1),
            "step_s": round(elapsed / max(done, 1), 2),
            "left_s": round((self.steps - self.step) * elapsed / max(done, 1), 1),
        }

    def _guard(self, loss: float, grad_norm: float) -> None:
        """Raise StudioError if the run has diverged."""
        if not math.isfinite(grad_norm):
            raise StudioError(
                f"The gradient is not finite at step {self.step}: lower learning_rate. The last complete checkpoint "
                "is kept."
            )
        if math.isnan(self.first_loss):
            self.first_loss = self.smooth_loss = loss
        self.smooth_loss = SMOOTHING * self.smooth_loss + (1 - SMOOTHING) * loss
        if self.smooth_loss > DIVERGED * self.first_loss + 1:
            raise StudioError(
                f"The loss rose from {self.first_loss:.2f} to {self.smooth_loss:.2f} (smoothed) by step {self.step}: "
                "lower learning_rate. The last complete checkpoint is kept."
            )

    def _cancelled(self) -> bool:
        """Return whether a cancel was requested, polled once a second.

        All processes must stop at the same step, so the first one decides.
        """
        now = time.monotonic()
        if processes().num_processes == 1:
            if now - self.asked_at < CANCEL_POLL_S:
                return False
            self.asked_at = now
            return self._asked_to_stop()
        return broadcast_object_list([self.is_main and self._asked_to_stop()])[0]

    def _asked_to_stop(self) -> bool:
        try:
            return self.store.cancel_requested(self.run.id)
        except StudioError as error:
            self.warn(str(error))
            return False


def _memory_gib() -> float:
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / GIB, 2)
    return round(psutil.Process().memory_info().rss / GIB, 2)
