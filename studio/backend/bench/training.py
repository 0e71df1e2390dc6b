"""`bench train`: benchmark optimizer steps of a LoRA on all experts. Called by `worker.py` in a separate process.

Nothing at the top of this file may import `jetmoe`: it would shadow transformers' own models.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# All expert tensors of a family, as in its `Family.expert_weights`.
TARGETS = {
    "jetmoe": ["experts.input_linear.weight", "experts.output_linear.weight",
               "mlp.input_linear.weight", "mlp.output_linear.weight"],
    "olmoe": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
}  # fmt: skip


def train(model: Any, work: dict[str, Any], synchronize: Callable[[], None]) -> dict[str, Any]:
    """Return tokens per second of forward, backward and AdamW step: the median of the repeats after a warm-up step."""
    import peft

    model.requires_grad_(False)

    if work["system"].endswith("checkpointed"):
        model.gradient_checkpointing_enable({"use_reentrant": False})
    targets = TARGETS[model.config.model_type]
    config = peft.LoraConfig(r=work["rank"], lora_alpha=2 * work["rank"], target_modules=[], target_parameters=targets)
    adapted = peft.get_peft_model(model, config).train()
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)  # Trainer's default
    # The peer has no chunked loss: its forward computes all logits.
    options = {} if work["system"] == "transformers" else {"skip_logits": True}
    seconds, losses = [], []
    for ids in batches(model.config.vocab_size, work, model.device):
        start = time.perf_counter()
        loss = adapted(input_ids=ids, labels=ids, use_cache=False, **options).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize()
        seconds.append(time.perf_counter() - start)
        losses.append(float(loss.detach()))
    tokens = work["batch"] * work["length"]
    return {"train_tok_s": round(tokens / statistics.median(seconds[1:]), 1), "note": f"loss {losses[-1]:.3f}"}


def batches(vocab_size: int, work: dict[str, Any], device: Any) -> list[Tensor]:
    """Return `repeats` + 1 batches `[batch, length]` of the same random tokens for every system."""
    generator = torch.Generator().manual_seed(0)
    shape = (work["repeats"] + 1, work["batch"], work["length"])
    return list(torch.randint(100, vocab_size, shape, generator=generator).to(device))
