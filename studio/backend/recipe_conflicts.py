"""Settings of a run that are valid alone but conflict."""

from __future__ import annotations

from collections.abc import Callable

# The format that `studio/backend/data/formats/labelled.py` reads.
LABELLED = "labelled"
NO_PROMPT = "{text}"
"""The prompt that is the text alone; each prompt contains it once."""

# Their names, the condition, and the remedy.
CLASHES: list[tuple[tuple[str, ...], Callable[..., bool], str]] = [
    (
        ("early_stopping", "eval_share"),
        lambda patience, share: bool(patience) and not share,
        "early_stopping needs held-out rows: set eval_share above 0, or early_stopping to 0",
    ),
    (
        ("save_steps", "eval_steps", "eval_share"),
        lambda save, evaluate, share: bool(share and evaluate and save % evaluate),
        "save_steps must be a multiple of eval_steps, to find the best checkpoint: set both to the same value",
    ),
    (
        ("task", "sample_prompts"),
        lambda task, prompts: task == "classify" and bool(prompts),
        "task=classify answers no prompts: leave out sample_prompts",
    ),
    (
        ("specialist", "task", "preset"),
        lambda experts, task, preset: (
            bool(experts) and (task == "classify" or not {*preset.split("+")} <= {"moa", "experts"})
        ),
        "specialist trains experts alone: set task to chat, and preset to moa+experts (OLMoE: experts)",
    ),
    (
        ("task", "balance_loss"),
        lambda task, weight: task == "classify" and bool(weight),
        "task=classify has no load-balancing loss: set balance_loss to 0",
    ),
    (
        ("task", "format"),
        lambda task, format: task == "classify" and format not in ("auto", LABELLED),
        f"task=classify reads labelled texts: set format to {LABELLED} or auto",
    ),
    (
        ("task", "format"),
        lambda task, format: task == "chat" and format == LABELLED,
        f"format={LABELLED} is for classifiers: set task to classify, or choose another format",
    ),
    (
        ("task", "problem", "class_weights"),
        lambda task, problem, weights: task == "chat" and (problem, weights) != ("single_label", "none"),
        "problem and class_weights are for classifiers: set task to classify, or leave them out",
    ),
    (
        ("task", "problem", "class_weights"),
        lambda task, problem, weights: task == "classify" and problem == "regression" and weights != "none",
        "class_weights does not apply to regression: set it to none, or problem to single_label",
    ),
    (
        ("task", "method", "prompt"),
        lambda task, method, prompt: task == "chat" and (method, prompt) != ("lora", NO_PROMPT),
        "method and prompt are for classifiers: set task to classify, or leave them out",
    ),
]
