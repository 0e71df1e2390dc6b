"""The trainers of TRL."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from datasets import Dataset

from tests.benchmarks.compatibility.place import Place, Results, adapt, fill, lora_on_all
from tests.benchmarks.compatibility.registry import row
from tests.benchmarks.compatibility.rows.training import ARGUMENTS, TRAINED, outcome

GROUP = "TRL"
# TRL's own defaults are bf16 and gradient checkpointing.
PLAIN: dict[str, Any] = {**ARGUMENTS, "bf16": False, "gradient_checkpointing": False}
GENERATION = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ message['content'] }}<|im_end|>"
    "{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = ("tea", "a walk", "some books", "win", "cash now", "rain", "the sea", "old maps")


def texts() -> Dataset:
    return Dataset.from_list([{"text": f"{word} and {other}"} for word in WORDS[:4] for other in WORDS[4:]])


def pairs() -> Dataset:
    return Dataset.from_list([{"prompt": f"Say {word}", "completion": f" {word}!"} for word in WORDS])


def chats() -> Dataset:
    turns = [[{"role": "user", "content": f"Say {word}"}, {"role": "assistant", "content": word}] for word in WORDS]
    return Dataset.from_list([{"messages": one} for one in turns])


def preferences() -> Dataset:
    return Dataset.from_list(
        [
            {"prompt": f"Say {word}", "chosen": f" {word}", "rejected": " no" * (1 + i % 3)}
            for i, word in enumerate(WORDS)
        ]
    )


def fill_adapter(place: Place, model: Any) -> None:
    if place.four_bits:  # TRL casts the adapters of a 4-bit model to bf16, whose rounding would hide other differences
        for one in model.parameters():
            one.data = one.data.float() if one.requires_grad else one.data
    fill(model)


def trained(place: Place, trainer: Any) -> Results:
    fill_adapter(place, trainer.model)
    trainer.train()
    return outcome(trainer, trainer.model)


def tuned(
    place: Place, data: Dataset, model: Any = None, full: bool = False, template: str | None = None, **options
) -> Results:
    """Supervised fine-tuning."""
    from trl import SFTConfig, SFTTrainer

    tokenizer = place.tokenizer()
    tokenizer.chat_template = template or tokenizer.chat_template
    arguments = SFTConfig(output_dir=str(place.folder / "run"), **{**PLAIN, "max_length": 64, **options})
    trainer = SFTTrainer(
        place.model() if model is None else model,
        arguments,
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
        peft_config=None if full else lora_on_all(),
    )
    if not full:
        fill_adapter(place, trainer.model)
    trainer.train()
    results = outcome(trainer, trainer.model)
    for key in ("mean_token_accuracy", "entropy", "num_tokens"):
        results[key] = torch.tensor([entry[key] for entry in trainer.state.log_history if key in entry])
    return results


SFT: dict[str, tuple[Any, dict[str, Any]]] = {
    "texts": (texts, {}),
    "all weights": (texts, {"full": True}),
    "prompts and completions": (pairs, {}),
    "completion_only_loss=False": (pairs, {"completion_only_loss": False}),
    "chats": (chats, {}),
    "assistant_only_loss": (chats, {"assistant_only_loss": True, "template": GENERATION}),
    "packing, bfd": (texts, {"packing": True, "packing_strategy": "bfd"}),
    "packing, bfd_split": (texts, {"packing": True, "packing_strategy": "bfd_split", "max_length": 16}),
    "packing, wrapped": (texts, {"packing": True, "packing_strategy": "wrapped", "max_length": 32}),
    "padding_free": (texts, {"padding_free": True, "max_length": None}),
    "loss_type=dft": (texts, {"loss_type": "dft"}),
    "loss_type=chunked_nll": (texts, {"loss_type": "chunked_nll"}),
    "NEFTune": (texts, {"neftune_noise_alpha": 5.0}),
    "gradient accumulation": (texts, {"gradient_accumulation_steps": 2}),
    "evaluation": (texts, {"eval_strategy": "steps", "eval_steps": 2}),
    "activation_offloading": (texts, {"activation_offloading": True}),
    "use_liger_kernel": (texts, {"use_liger_kernel": True}),
    "pad_to_multiple_of": (texts, {"pad_to_multiple_of": 8}),
}
for name, (data, options) in SFT.items():
    row(
        GROUP,
        f"SFT, {name}",
        tolerance=TRAINED,
        four_bits=name in ("texts", "packing, bfd"),
    )(partial(lambda place, data, options: tuned(place, data(), **options), data=data, options=options))


@row(GROUP, "SFT, the model as a folder", tolerance=TRAINED)
def by_folder(place: Place) -> Results:
    return tuned(place, texts(), model=str(place.path()), model_init_kwargs={"dtype": "float32"})


@row(GROUP, "SFT, TRL's own precision and checkpointing: losses", tolerance=3e-2)
def defaults(place: Place) -> Results:
    options = {"bf16": True, "gradient_checkpointing": True}
    expected = tuned(place, texts(), bf16=True)["loss"] if place.ours else torch.zeros(1)
    return {"loss": tuned(place, texts(), **options)["loss"], "loss.expected": expected}


@row(GROUP, "SFT, router_aux_loss_coef: runs, its values are compared elsewhere")
def aux_loss(place: Place) -> Results:
    """Stock's balance loss counts every attention router twice."""
    model = place.model()
    model.config.output_router_logits = True
    results = tuned(place, texts(), model=model, router_aux_loss_coef=0.01)
    return {"finite": results["loss"].isfinite()}


@row(GROUP, "SFT, an adapter that exists is trained on", tolerance=TRAINED)
def existing_adapter(place: Place) -> Results:
    return tuned(place, texts(), model=adapt(place.model(), lora_on_all()), full=True)


def preferred(place: Place, reference: bool = False, **options) -> Results:
    from trl import DPOConfig, DPOTrainer

    arguments = DPOConfig(output_dir=str(place.folder / "run"), **{**PLAIN, "max_length": 64, **options})
    trainer = DPOTrainer(
        place.model(),
        ref_model=place.model() if reference else None,
        args=arguments,
        train_dataset=preferences(),
        eval_dataset=preferences(),
        processing_class=place.tokenizer(),
        peft_config=None if reference else lora_on_all(),
    )
    if not reference:
        fill_adapter(place, trainer.model)
    trainer.train()
    results = outcome(trainer, trainer.model)
    for key in ("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected", "rewards/margins"):
        results[key] = torch.tensor([entry[key] for entry in trainer.state.log_history if key in entry])
    return results


for name, options in {
    "adapters off as the reference": {},
    "reference model": {"reference": True},
    "loss_type=ipo": {"loss_type": "ipo"},
    "loss_type=hinge": {"loss_type": "hinge"},
    "loss_type=apo_zero": {"loss_type": "apo_zero"},
    "loss_type=sigmoid and sft": {"loss_type": ["sigmoid", "sft"]},
    "padding_free": {"padding_free": True, "max_length": None},
    "precompute_ref_log_probs": {"precompute_ref_log_probs": True},
    "label smoothing": {"label_smoothing": 0.1},
    "length-desensitised": {"ld_alpha": 0.5},
    "evaluation": {"eval_strategy": "steps", "eval_steps": 2},
}.items():
    row(GROUP, f"DPO, {name}", tolerance=5e-4, four_bits="adapters off" in name)(
        partial(lambda place, options: preferred(place, **options), options=options)
    )


@row(GROUP, "reward model", tolerance=TRAINED)
def reward(place: Place) -> Results:
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    model = AutoModelForSequenceClassification.from_pretrained(
        place.path("classifier"), num_labels=1, ignore_mismatched_sizes=True, dtype=torch.float32
    )
    torch.nn.init.normal_(model.score.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    arguments = RewardConfig(output_dir=str(place.folder / "run"), **{**PLAIN, "max_length": 64})
    trainer = RewardTrainer(
        model,
        arguments,
        train_dataset=preferences(),
        processing_class=place.tokenizer(),
        peft_config=lora_on_all(task_type="SEQ_CLS"),
    )
    fill_adapter(place, trainer.model)
    trainer.train()
    losses = torch.tensor([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    return {"loss": losses} | {n: p.detach() for n, p in trainer.model.named_parameters() if p.requires_grad}


@row(GROUP, "KTO", tolerance=5e-4)
def kto(place: Place) -> Results:
    from trl import KTOConfig, KTOTrainer

    data = Dataset.from_list(
        [{"prompt": f"Say {word}", "completion": f" {word}", "label": i % 2 == 0} for i, word in enumerate(WORDS)]
    )
    arguments = KTOConfig(output_dir=str(place.folder / "run"), **{**PLAIN, "max_length": 64})
    trainer = KTOTrainer(
        place.model(), args=arguments, train_dataset=data, processing_class=place.tokenizer(), peft_config=lora_on_all()
    )
    return trained(place, trainer)


def lengths(completions: list[str], **kwargs) -> list[float]:
    return [float(len(one) % 7) for one in completions]


def sampled(place: Place, kind: str, **options) -> Results:
    import trl

    arguments = getattr(trl, f"{kind}Config")(
        output_dir=str(place.folder / "run"),
        **{
            **PLAIN,
            "max_completion_length": 6,
            "num_generations": 2,
            "per_device_train_batch_size": 4,
            "max_steps": 2,
            **options,
        },
    )
    prompts = Dataset.from_list([{"prompt": f"Say {word}"} for word in WORDS])
    trainer = getattr(trl, f"{kind}Trainer")(
        place.model(),
        lengths,
        args=arguments,
        train_dataset=prompts,
        processing_class=place.tokenizer(),
        peft_config=lora_on_all(),
    )
    return trained(place, trainer)


for kind, options in {
    "GRPO": {},
    "RLOO": {},
    "GRPO, beta": {"beta": 0.1},
    "GRPO, loss_type=grpo": {"loss_type": "grpo"},
    "GRPO, cast_lm_head_to_fp32": {"cast_lm_head_to_fp32": True},
    "GRPO, two iterations": {"num_iterations": 2},
    "GRPO, cache_implementation=static": {"cache_implementation": "static"},
    # Without sizes, the cache takes most of the machine's memory.
    "GRPO, continuous batching": {
        "use_transformers_continuous_batching": True,
        "transformers_continuous_batching_config": {"num_blocks": 16, "max_batch_tokens": 64},
    },
}.items():
    row(GROUP, kind, tolerance=5e-4)(
        partial(lambda place, kind, options: sampled(place, kind, **options), kind=kind.split(",")[0], options=options)
    )


@row(GROUP, "distillation", tolerance=5e-4)
def distilled(place: Place) -> Results:
    from trl import DistillationConfig, DistillationTrainer

    prompts = Dataset.from_list([{"prompt": [{"role": "user", "content": f"Say {word}"}]} for word in WORDS])
    arguments = DistillationConfig(output_dir=str(place.folder / "run"), **{**PLAIN, "max_completion_length": 6})
    trainer = DistillationTrainer(
        place.model(),
        place.model("untied"),
        args=arguments,
        train_dataset=prompts,
        processing_class=place.tokenizer(),
        peft_config=lora_on_all(),
    )
    return trained(place, trainer)
