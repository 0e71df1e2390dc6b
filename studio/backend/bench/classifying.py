"""`bench classify`: benchmark a classification head. Called by `worker.py` in a separate process.

Nothing at the top of this file may import `jetmoe`: it would shadow transformers' own JetMoE.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from studio.backend.data.dataset import read

LABELS = 4
SAMPLE = "devils-dictionary"
"""The sample that the texts are taken from. Their lengths vary, as in real data."""
Classify = Callable[[list[str]], list[int]]


def classify(work: dict[str, Any], dtype: torch.dtype, device: str, synchronize: Callable[[], None]) -> dict[str, Any]:
    """Return texts per second: the median of the repeats, after one warm-up.

    The note counts the predicted labels, which are the same for all systems up to rounding.
    """
    run = (stock if work["system"] == "transformers" else ours)(work, dtype, device)
    texts = texts_of(work["rows"])
    seconds, found = [], []
    for _ in range(work["repeats"] + 1):
        start = time.perf_counter()
        found = run(texts)
        synchronize()
        seconds.append(time.perf_counter() - start)
    counts = [found.count(label) for label in range(LABELS)]
    return {"rows_s": round(len(texts) / statistics.median(seconds[1:]), 1), "note": f"labels {counts}"}


def texts_of(count: int) -> list[str]:
    examples = read(SAMPLE).examples
    return [examples[i % len(examples)].messages[-1]["content"] for i in range(count)]


def stock(work: dict[str, Any], dtype: torch.dtype, device: str) -> Classify:
    """Return transformers' pipeline on its own JetMoE."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig, pipeline

    options: dict[str, Any] = {}
    if work["weights"] == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=["score"]
        )
    model = AutoModelForSequenceClassification.from_pretrained(
        work["path"], dtype=dtype, num_labels=LABELS, device_map=device, use_safetensors=True, **options
    )
    tokenizer = AutoTokenizer.from_pretrained(work["path"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    model.score.weight.data.copy_(head(model.config.hidden_size))
    classifier: Any = pipeline("text-classification", model=model.eval(), tokenizer=tokenizer)
    number = model.config.label2id
    return lambda texts: [number[row["label"]] for row in classifier(texts, batch_size=work["batch"], truncation=True)]


def ours(work: dict[str, Any], dtype: torch.dtype, device: str) -> Classify:
    """Return a trained classifier, as the page and the command line use it."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from jetmoe.loading.load import load
    from studio.backend.classification.trained import Body, TrainedClassifier, always
    from studio.backend.data.labelled import Labels

    quantization: Any = "nf4" if work["weights"] == "nf4" else None
    model = load(
        AutoModelForSequenceClassification, work["path"], quantization=quantization, dtype=dtype, device=device
    )
    longest = model.config.max_position_embeddings
    tokenizer: Any = AutoTokenizer.from_pretrained(work["path"])
    body = Body(tokenizer, always(model), longest)
    labels = Labels("single_label", tuple(map(str, range(LABELS))))
    classifier = TrainedClassifier(labels, head(model.config.hidden_size).float(), body, longest)

    def run(texts: list[str]) -> list[int]:
        found = classifier.predict(texts)
        assert found is not None, "never cancelled"
        return found.probabilities.argmax(-1).tolist()

    return run


def head(hidden_size: int) -> Tensor:
    """Return the head's weights `[LABELS, D]`, the same for all systems."""
    return torch.randn(LABELS, hidden_size, generator=torch.Generator().manual_seed(0)) * 0.02
