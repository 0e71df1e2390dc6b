"""Perplexity of the starter in 16 and in 4 bits on held-out text: `python -m tests.benchmarks.perplexity`.

Texts and licences: tests/data/README.md. Windows of 1,024 tokens, each predicted from its own beginning on.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from transformers import AutoTokenizer

from jetmoe import JetMoeForCausalLM
from jetmoe.loading.load import load
from studio.backend.models import catalog

HELD_OUT = Path(__file__).parents[1] / "data" / "held_out"
WINDOW = 1024
WEIGHTS: dict[str, dict] = {
    "fp32": {"dtype": torch.float32},
    "bf16": {},
    "nf4": {"quantization": "nf4"},
    "nf4, double quantization": {"quantization": "nf4", "double_quantization": True},
}


def main() -> None:
    folder = catalog.prepare("starter")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = {file.stem: file.read_text() for file in sorted(HELD_OUT.glob("*.txt"))}
    print(f"| weights | {' | '.join(texts)} |\n|{' --- |' * (len(texts) + 1)}")
    for name, options in WEIGHTS.items():
        model = load(JetMoeForCausalLM, folder, **options)
        row = [f"{perplexity(model, tokenizer(text, return_tensors='pt').input_ids):.2f}" for text in texts.values()]
        print(f"| {name} | {' | '.join(row)} |", flush=True)


@torch.no_grad()
def perplexity(model: JetMoeForCausalLM, ids: torch.Tensor) -> float:
    """Of tokens `[1, S]`."""
    total, count = 0.0, 0
    for window in ids.split(WINDOW, dim=1):
        if window.shape[1] > 1:
            logits = model(window).logits[0, :-1].float()  # [S - 1, V]
            total += float(torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum"))
            count += window.shape[1] - 1
    return math.exp(total / count)


if __name__ == "__main__":
    main()
