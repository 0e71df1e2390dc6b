"""Trainer, with the options that people set."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments

from tests.benchmarks.compatibility.place import (
    FEW,
    Place,
    Results,
    adapt,
    logits,
    lora,
    lora_on_all,
    trainable,
)
from tests.benchmarks.compatibility.registry import row

GROUP = "Trainer"
# Adam divides gradients by their size, which makes differences of tiny ones large; a larger epsilon does not.
ARGUMENTS: dict[str, Any] = {
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "save_strategy": "no",
    "disable_tqdm": True,
    "adam_epsilon": 1e-4,
    "seed": 0,
}
TRAINED = 1e-4


def examples(count: int = 12) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(4)
    lengths = torch.randint(6, 20, (count,), generator=generator).tolist()
    return [{"input_ids": torch.randint(3, 250, (length,), generator=generator).tolist()} for length in lengths]


def make_trainer(
    place: Place, model: Any, trainer_class: Any = Trainer, callbacks: Any = None, length: int = 20, **options
) -> Any:
    arguments = TrainingArguments(output_dir=str(place.folder / "run"), **{**ARGUMENTS, **options})
    data = [{"input_ids": one["input_ids"][:length]} for one in examples()]
    collator = DataCollatorForLanguageModeling(place.tokenizer(), mlm=False)
    return trainer_class(
        model, arguments, collator, data, eval_dataset=examples(4), callbacks=callbacks,
        processing_class=place.tokenizer(),
    )  # fmt: skip


def outcome(trainer: Any, model: Any) -> Results:
    """Losses and norms of gradients of every step, what was trained, and what a few tokens then give."""
    results: Results = {}
    for key in ("loss", "grad_norm", "eval_loss"):
        values = [entry[key] for entry in trainer.state.log_history if key in entry]
        if values:
            results[key] = torch.tensor(values)
    assert "loss" in results
    return results | trainable(model) | {"few": logits(model.eval(), FEW)}


def train(
    place: Place, full: bool = False, expected: bool = False, callbacks: Any = None, kind: str = "tied", **options
) -> Results:
    model = place.model(kind) if full else adapt(place.model(kind), lora_on_all())
    trainer = make_trainer(place, model, callbacks=callbacks, **options)
    trainer.train()
    results = outcome(trainer, model)
    if expected:  # what the same run gives without the option that stock refuses
        results |= {f"{name}.expected": one for name, one in train(place, full).items()}
    return results


for name, options in {
    "LoRA, fp32": {},
    "all weights, fp32": {"full": True},
    "gradient accumulation": {"gradient_accumulation_steps": 3},
    "label smoothing": {"label_smoothing_factor": 0.1},
    "gradient clipping": {"max_grad_norm": 0.1},
    "weight decay and cosine schedule": {"weight_decay": 0.1, "lr_scheduler_type": "cosine", "warmup_steps": 2},
    "grouped by length": {"train_sampling_strategy": "group_by_length"},
    "NEFTune": {"neftune_noise_alpha": 5.0},
    "optim=sgd": {"optim": "sgd"},
    "optim=adafactor": {"optim": "adafactor"},
    "optim=adamw_torch_fused": {"optim": "adamw_torch_fused"},
    "optim=adamw_bnb_8bit": {"optim": "adamw_bnb_8bit"},
    "optim=paged_adamw_8bit": {"optim": "paged_adamw_8bit"},
    "optim=stable_adamw": {"optim": "stable_adamw"},
    "optim=lomo": {"optim": "lomo"},
    "evaluation every step": {"eval_strategy": "steps", "eval_steps": 1},
    "auto_find_batch_size": {"auto_find_batch_size": True},
    "dataloader workers": {"dataloader_num_workers": 1},
    "full_determinism": {"full_determinism": True},
    "use_liger_kernel": {"use_liger_kernel": True},
    "torch_empty_cache_steps": {"torch_empty_cache_steps": 1},
}.items():
    row(GROUP, name, tolerance=TRAINED, four_bits=name in ("LoRA, fp32", "gradient accumulation"))(
        partial(lambda place, options: train(place, **options), options=options)
    )


@row(GROUP, "gradient checkpointing", tolerance=TRAINED, four_bits=True)
def checkpointing(place: Place) -> Results:
    return train(
        place, expected=True, gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False}
    )


@row(GROUP, "gradient checkpointing, reentrant", tolerance=TRAINED)
def reentrant(place: Place) -> Results:
    return train(
        place, expected=True, gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True}
    )


@row(GROUP, "gradient checkpointing of all weights", tolerance=TRAINED)
def checkpointing_all(place: Place) -> Results:
    return train(place, full=True, expected=True, gradient_checkpointing=True)


# Under autocast, stock computes router logits in bf16 and ours in fp32, so single tokens take other experts.
AUTOCAST = 3e-2


def losses(results: Results) -> Results:
    return {"loss": results["loss"]}


@row(GROUP, "bf16=True: losses", tolerance=AUTOCAST, four_bits=True)
def bf16(place: Place) -> Results:
    return losses(train(place, bf16=True))


@row(GROUP, "bf16=True with gradient checkpointing: losses", tolerance=AUTOCAST, four_bits=True)
def bf16_checkpointing(place: Place) -> Results:
    made = losses(train(place, bf16=True, gradient_checkpointing=True))
    return made | {"loss.expected": train(place, bf16=True)["loss"]}


@row(GROUP, "bf16=True, all weights: losses", tolerance=AUTOCAST)
def bf16_all(place: Place) -> Results:
    return losses(train(place, full=True, bf16=True))


@row(GROUP, "fp16=True: losses", tolerance=AUTOCAST)
def fp16(place: Place) -> Results:
    return losses(train(place, fp16=True))


@row(GROUP, "bf16 weights: losses", tolerance=AUTOCAST)
def bf16_weights(place: Place) -> Results:
    model = adapt(place.model(dtype=torch.bfloat16), lora_on_all(), 0.05)
    trainer = make_trainer(place, model)
    trainer.train()
    return {"loss": torch.tensor([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])}


@row(GROUP, "bf16_full_eval", tolerance=AUTOCAST)
def bf16_eval(place: Place) -> Results:
    trainer = make_trainer(place, adapt(place.model(), lora_on_all()), bf16_full_eval=True)
    return {"loss": torch.tensor(trainer.evaluate()["eval_loss"])}


@row(GROUP, "evaluate and predict", tolerance=TRAINED, four_bits=True)
def predict(place: Place) -> Results:
    trainer = make_trainer(place, adapt(place.model(), lora_on_all()))
    predictions = trainer.predict(examples(3)).predictions
    predictions = predictions[0] if isinstance(predictions, tuple) else predictions
    return {"eval_loss": torch.tensor(trainer.evaluate()["eval_loss"]), "predictions": torch.as_tensor(predictions)}


@row(GROUP, "predictions with output_router_logits: shapes of what is returned")
def predict_routers(place: Place) -> Results:
    model = adapt(place.model(), lora_on_all())
    model.config.output_router_logits = True
    trainer = make_trainer(place, model)
    predictions = trainer.predict(examples(3)).predictions
    return {"logits": torch.as_tensor(predictions[0] if predictions[0].ndim == 3 else predictions[1])}


class MovingAverage(TrainerCallback):
    """Writes averaged weights through `.data`, as callbacks for moving averages do, and reads a few tokens."""

    def __init__(self) -> None:
        self.averages: dict[str, Tensor] = {}
        self.few: list[Tensor] = []

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        for name, one in model.named_parameters():
            if one.requires_grad:
                before = self.averages.setdefault(name, one.detach().clone())
                self.averages[name] = 0.5 * before + 0.5 * one.detach()
                one.data.copy_(self.averages[name])
        self.few.append(logits(model, FEW))


@row(GROUP, "moving average written through .data", tolerance=TRAINED)
def moving_average(place: Place) -> Results:
    callback = MovingAverage()
    results = train(place, callbacks=[callback])
    return results | {f"few after step {step}": one for step, one in enumerate(callback.few)}


@row(GROUP, "resume from a checkpoint", tolerance=TRAINED, four_bits=True)
def resume(place: Place) -> Results:
    first = make_trainer(place, adapt(place.model(), lora_on_all()), save_strategy="steps", save_steps=2, max_steps=2)
    first.train()
    model = adapt(place.model(), lora_on_all())
    trainer = make_trainer(place, model)
    trainer.train(resume_from_checkpoint=str(place.folder / "run" / "checkpoint-2"))
    return outcome(trainer, model)


@row(GROUP, "load_best_model_at_end", tolerance=TRAINED, four_bits=True)
def best_model(place: Place) -> Results:
    return train(
        place, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, load_best_model_at_end=True
    )


@row(GROUP, "save_model of all weights, loaded again", tolerance=TRAINED)
def save_model(place: Place) -> Results:
    from transformers import AutoModelForCausalLM

    model = place.model()
    trainer = make_trainer(place, model)
    trainer.train()
    trainer.save_model(str(place.folder / "saved"))
    loaded = AutoModelForCausalLM.from_pretrained(place.folder / "saved").eval()
    return {"logits": logits(loaded)} | {f"state.{k}": v for k, v in loaded.state_dict().items()}


class HalfLoss(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        shifted = outputs.logits[:, :-1].flatten(0, 1)
        loss = 0.5 * torch.nn.functional.cross_entropy(shifted, labels[:, 1:].flatten())
        return (loss, outputs) if return_outputs else loss


@row(GROUP, "own compute_loss", tolerance=TRAINED)
def own_loss(place: Place) -> Results:
    model = adapt(place.model(), lora_on_all())
    trainer = make_trainer(place, model, HalfLoss)
    trainer.train()
    return outcome(trainer, model)


@row(GROUP, "compute_loss_func", tolerance=TRAINED)
def loss_function(place: Place) -> Results:
    def smooth(outputs, labels, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(
            outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), label_smoothing=0.2
        )

    model = adapt(place.model(), lora_on_all())
    trainer = make_trainer(place, model)
    trainer.compute_loss_func = smooth
    trainer.train()
    return outcome(trainer, model)


def classify(place: Place, **options) -> Results:
    model = adapt(place.classifier(), lora_on_all(task_type="SEQ_CLS"))
    rows = [{**one, "labels": i % 3} for i, one in enumerate(examples())]
    from transformers import DataCollatorWithPadding

    arguments = TrainingArguments(output_dir=str(place.folder / "run"), **{**ARGUMENTS, **options})
    trainer = Trainer(model, arguments, DataCollatorWithPadding(place.tokenizer()), rows, eval_dataset=rows[:4])
    trainer.train()
    results: Results = {"loss": torch.tensor([one["loss"] for one in trainer.state.log_history if "loss" in one])}
    return results | trainable(model) | {"eval": torch.tensor(trainer.evaluate()["eval_loss"])}


@row(GROUP, "classifier", tolerance=TRAINED)
def classifier(place: Place) -> Results:
    return classify(place)


@row(GROUP, "classifier with label smoothing", tolerance=TRAINED)
def smooth_classifier(place: Place) -> Results:
    return classify(place, label_smoothing_factor=0.1)


# One layer and texts of one length, because compilers take seconds for each of them.
COMPILED: dict[str, Any] = {"kind": "shallow", "max_steps": 2, "length": 6}


def compiled(place: Place, full: bool, backend: str) -> Results:
    eager = train(place, full, **COMPILED)
    results = train(place, full, torch_compile=True, torch_compile_backend=backend, **COMPILED)
    return results | {f"{name}.expected": one for name, one in eager.items()}


for full, backend in ((False, "inductor"), (False, "aot_eager"), (True, "aot_eager")):
    name = f"torch_compile_backend={backend}{', all weights' * full}"
    row(GROUP, name, tolerance=TRAINED, four_bits=not full and backend != "inductor", limit=900)(
        partial(compiled, full=full, backend=backend)
    )


@row(GROUP, "torch_compile_backend=aot_eager, adapters on linear layers alone", tolerance=TRAINED)
def compiled_linear(place: Place) -> Results:
    model = adapt(place.model("shallow"), lora(target_modules="all-linear"))
    trainer = make_trainer(place, model, torch_compile=True, torch_compile_backend="aot_eager", max_steps=2, length=6)
    trainer.train()
    return outcome(trainer, model)
