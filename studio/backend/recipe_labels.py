"""Names of settings and figures for people.

label("r"), label("eval_loss")                # "LoRA rank", "Held-out loss"
"""

from __future__ import annotations

LABELS = {
    "prompt": "Prompt around each text", "with_tfidf": "TF-IDF beside the head",
    "preset": "Trained weights", "r": "LoRA rank", "lora_alpha": "LoRA alpha",
    "max_length": "Maximum row length in tokens",
    "eval_share": "Held-out share", "lr_scheduler": "Learning rate schedule",
    "warmup_share": "Warm-up share", "max_grad_norm": "Gradient clipping",
    "sample_tokens": "Maximum sample length in tokens", "insist_on_router": "Train tied routers anyway",
}  # fmt: skip
"""Labels of settings whose names are unclear."""
FIGURES = {
    "step": "Step", "loss": "Training loss", "eval_loss": "Held-out loss", "best_eval_loss": "Best held-out loss",
    "eval_accuracy": "Held-out accuracy", "eval_macro_f1": "Held-out macro-F1",
    "eval_mean_absolute_error": "Held-out mean absolute error", "eval_r2": "Held-out R²",
    "tok_s": "Tokens per second", "memory_gib": "Memory in GiB", "grad_norm": "Gradient norm", "epoch": "Passes",
    "elapsed_s": "Elapsed seconds", "step_s": "Seconds per step", "num_input_tokens_seen": "Tokens seen",
}  # fmt: skip


def label(name: str) -> str:
    """Return the label of a setting or a figure; the name with spaces if it has no other."""
    return LABELS.get(name) or FIGURES.get(name) or name.replace("_", " ").capitalize()
