"""Training runs with the events that a real one appends, made up without a model: figures are functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from studio.backend.recipe import Recipe
from studio.backend.runs.run import Run
from studio.backend.runs.store import RunStore

HOSTILE = ("<img src=x onerror=window.__p=1>", "${window.__p=1}", "{{constructor.constructor('window.__p=1')()}}")
SENTENCE = (
    "CUDA ran out of memory while training: 14.2 GiB were asked for and 9.8 GiB were free. Lower batch_size or "
    "max_length, or set gradient_checkpointing or precision=nf4. The last complete checkpoint is kept, so that the "
    "run can be resumed from step 40 after the settings of a new one were changed accordingly."
)
LAYERS, KINDS, GROUPS = 6, ("MoA", "MoE"), 4


@dataclass
class ToyRun:
    """Appends to a run of the store what `studio.backend.training.callback` would."""

    store: RunStore
    run: Run
    steps: int = 80
    speed: float = 1.0

    def audit(self, *warnings: str) -> ToyRun:
        self.run.events.append("audit", 0, audit_values())
        for sentence in warnings:
            self.run.events.append("warning", 0, {"message": sentence})
        return self

    def log(self, step: int) -> None:
        self._log(step)
        self.store.update(self.run.id, step=step)

    def _log(self, step: int) -> None:
        values = {
            "loss": loss_at(step * self.speed),
            "grad_norm": 0.6 + 0.3 * math.sin(step * 1.3),
            "learning_rate": 2e-4 * (1 - step / self.steps),
            "epoch": step / 40,
            "tok_s": 412.5 + 20 * math.sin(step / 5),
            "progress": step / self.steps,
            "elapsed_s": 2.5 * step,
            "left_s": 2.5 * (self.steps - step),
            "memory_gib": 3.41 + 0.002 * step,
        }
        self.run.events.append("log", step, values)

    def evaluate(self, step: int, *answers: tuple[str, str]) -> None:
        loss = loss_at(step * self.speed) + 0.05
        self.run.events.append("eval", step, {"eval_loss": loss, "epoch": step / 40})
        if step:
            self.store.update(self.run.id, best_eval_loss=loss)
        self.run.events.append("routing", step, routing_values(step / self.steps))
        for prompt, answer in answers or sample_answers(step):
            self.run.events.append("sample", step, {"prompt": prompt, "answer": answer})

    def train(self, last: int, every: int = 20) -> ToyRun:
        """From the first step to that one, with evaluations."""
        self.evaluate(0)
        for step in range(1, last + 1):
            self._log(step)
            if step == 3:
                self.run.events.append("audit", step, {"gradients": gradients()})
            if step % every == 0:
                self.evaluate(step)
                self.run.events.append("checkpoint", step, {"folder": f"checkpoint-{step}"})
        self.store.update(self.run.id, step=last)
        return self

    def finish(self, state, message: str) -> ToyRun:
        self.store.finish(self.run.id, state, message)
        if state != "interrupted":
            self.run.events.append(state, self.store.get(self.run.id).step, {"message": message})
        return self

    def save_adapter(self) -> ToyRun:
        self.run.adapter.mkdir()
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            (self.run.adapter / name).write_text("{}")
        return self


def toy_run(
    store: RunStore, name: str, steps: int = 80, speed: float = 1.0, begin: bool = True, owner: str = "", **settings
) -> ToyRun:
    recipe = Recipe(**{"data": "devils-dictionary", "max_steps": steps} | settings)
    run = store.create(recipe, name, begin=begin, owner=owner)
    return ToyRun(store, run, steps, speed)


def fill(store: RunStore) -> dict[str, ToyRun]:
    """A run of every state and of every hostile name; the running one is at step 30 of 80."""
    made = {
        "done": toy_run(store, "dictionary, all experts").audit().train(80).save_adapter(),
        "failed": toy_run(store, "too much for this card", speed=0.4, batch_size=16).audit().train(44),
        "cancelled": toy_run(store, "stopped by hand", speed=0.7, learning_rate=5e-5).audit().train(25).save_adapter(),
        "interrupted": toy_run(store, "power cut", r=8).audit().train(33),
        "running": toy_run(store, "dictionary, routers too", speed=1.2, preset="experts+router", insist_on_router=True)
        .audit("The routers are trained: watch the routing drift and the expert load.")
        .train(30),
        "queued": toy_run(store, "next in line", begin=False),
    }
    for number, name in enumerate(HOSTILE):
        made[f"hostile {number}"] = toy_run(store, name, begin=False)
    made["done"].finish("done", "Done after 80 of 80 steps.")
    made["failed"].finish("failed", SENTENCE)
    made["cancelled"].finish("cancelled", "Cancelled after 25 of 80 steps.")
    made["interrupted"].finish("interrupted", "The process ended without a message: the machine went down. Resume it.")
    return made


def loss_at(step: float) -> float:
    return 1.2 + 1.6 * math.exp(-step / 25) + 0.08 * math.sin(step * 2.1)


def routing_values(progress: float) -> dict:
    load = [[_load(layer, kind, progress) for kind in range(len(KINDS))] for layer in range(LAYERS)]
    figures = {"flip_rate": 0.11, "overlap": -0.08, "js": 0.04, "load_shift": 0.07}
    values = {name: round((name == "overlap") + most * progress, 6) for name, most in figures.items()}
    values["entropy"] = round(1.21 - 0.1 * progress, 6)
    values["by_layer"] = {name: [[values[name]] * len(KINDS)] * LAYERS for name in values}
    return values | {"load": load, "unit": "group", "kinds": [*KINDS], "tokens": 210, "broken_slot_sets": 0}


def _load(layer: int, kind: int, progress: float) -> list[float]:
    weights = [1 + 0.4 * math.sin(layer + 2 * group + kind) + (group == kind) * progress for group in range(GROUPS)]
    return [round(weight / sum(weights), 5) for weight in weights]


def sample_answers(step: int) -> list[tuple[str, str]]:
    answers = [
        "An idiot is a person of low intelligence, or one who acts in a foolish way.",
        "Idiot, n. A person who acts in a foolish way, and is often elected for it.",
        "Idiot, n. A member of a large and powerful tribe whose influence in human affairs has always been dominant.",
    ]
    chosen = answers[min(step // 20, 2)]
    return [("Define: idiot", chosen), ("Define: patience, in a single sentence", f"Patience, n. {chosen[:40]} (step)")]


def gradients() -> dict:
    return {
        "attention experts": {"tensors": 48, "without_gradient": 0},
        "MLP experts": {"tensors": 48, "without_gradient": 5},
        "routers": {"tensors": 12, "without_gradient": 0},
    }


def audit_values() -> dict:
    parts = [
        ("embeddings", 28_311_552, 0, 0, "bf16", 0.0),
        ("attention experts", 106_168_320, 1_769_472, 16, "nf4", 1.0),
        ("MLP experts", 318_504_960, 4_128_768, 16, "bf16, nf4", 0.97),
        ("routers", 36_864, 12_288, 16, "fp32", 0.0),
        ("norms", 35_136, 0, 0, "fp32", 0.0),
    ]
    names = ("part", "parameters", "trained", "rank", "dtype", "four_bit")
    total = sum(part[2] for part in parts)
    rows = [dict(zip(names, part, strict=True)) | {"share": part[2] / total} for part in parts]
    data = {
        "file": "devils_dictionary.jsonl", "fingerprint": "0" * 64, "format": "chat", "examples": 312, "bad_rows": 2,
        "duplicates": 1, "train_rows": 41, "held_out_rows": 5, "edges": [1, 33, 65, 129, 257],
        "counts": [40, 130, 120, 22], "cut": 3, "untrained": 0, "tokens": 28_540, "trained_tokens": 17_204,
    }  # fmt: skip
    forecast = {"memory_gib": 3.4, "free_gib": 11.9, "steps": 80, "step_s": 2.5, "seconds": 200.0, "tok_s": 410.2}
    example = [
        ["<|im_start|>user\nDefine: idiot<|im_end|>\n<|im_start|>assistant\n", False],
        ["Idiot, n. A member", True],
    ]
    return {
        "rows": rows, "trained": total, "precision": "nf4", "data": data, "example": example, "forecast": forecast,
        "warnings": ["Only 97 % of the MLP experts are in 4 bits."],
    }  # fmt: skip
