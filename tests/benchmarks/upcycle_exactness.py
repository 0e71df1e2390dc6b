"""Prints how exactly upcycled models compute their dense models, for each kind of source, and fails where they do not.

    python -m tests.benchmarks.upcycle_exactness          # some minutes on two cores

All rows but the last are of toy models with trained tokenizers. "Tokens" compares with a reference tokenizer: the
sentencepiece library, or a BPE that searches all pairs. The error of logits is the norm of the difference, divided by
the norm of the dense model's. Greedy decoding starts from the ids of either tokenizer.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from jetmoe.dense import load_weights, open_dense
from jetmoe.gguf_tokenizer import tokenizer_from_gguf
from jetmoe.upcycle import upcycle
from studio.backend.models import starter
from tests.builders.gguf import KINDS, corpus, toy_llama, vocabulary, write_gguf

TEXTS = [
    "The capital of France is",
    "  two  spaces\n\ttab\r\n\r\n",
    "don't we'll I'M 1234567 + 17 % more, upcycling <= $$$ ~~",
    "naïve café 😀 привет שלום 日本語 ½",
    "def quicksort(items):\n",
]
LETTERS = " \n\t\r'sSabcd019$+<.!é漢½ "
ROPE = {
    "llama-bpe": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                  "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
}  # fmt: skip
LARGEST_ERROR = 1e-4


class Row(NamedTuple):
    source: str
    tokenizer: str
    same_ids: bool
    error: float
    same_greedy: bool

    @property
    def exact(self) -> bool:
        return self.same_ids and self.error < LARGEST_ERROR and self.same_greedy


def texts(count: int) -> list[str]:
    """Return fixed texts, pieces of the corpus, and `count` random ones."""
    choose, sources = random.Random(0), corpus()
    pieces = []
    for _ in range(count):
        source, letters = choose.choice(sources), choose.randrange(1, 80)
        start = choose.randrange(len(source) - letters)
        pieces += [source[start : start + letters], "".join(choose.choices(LETTERS, k=choose.randrange(1, 30)))]
    return [*TEXTS, *pieces]


def toy_rows(folder: Path, kind: str, count: int = 100, new_tokens: int = 24) -> Iterator[Row]:
    """Yield the rows of a GGUF and of a folder with the same model and tokenizer."""
    words = vocabulary(kind)
    model = toy_llama(len(words.tokens), **({"rope_parameters": ROPE[kind]} if kind in ROPE else {}))
    gguf = write_gguf(folder / f"{kind}.gguf", model, words)
    model.save_pretrained(folder / kind)
    tokenizer_from_gguf(gguf).save_pretrained(folder / kind)
    for source in (gguf, folder / kind):
        made = upcycle(source, folder / f"{source.name} upcycled", replicas=4)
        yield Row(
            "GGUF, F32" if source == gguf else "folder", kind, *compare(made, model, words.tokenize, count, new_tokens)
        )


def starter_row(folder: Path, new_tokens: int = 24) -> Row:
    dense = open_dense(starter.dense_gguf(folder, lambda fraction, text: None))
    made = upcycle(dense.path, folder / "starter", replicas=4)
    name = "GGUF, Q4_1 (SmolLM2-135M-Instruct)"
    found = compare(made, load_weights(dense), lambda text: dense.tokenizer(text).input_ids, 0, new_tokens)
    return Row(name, "smollm", *found)


def compare(
    made: Path, dense: LlamaForCausalLM, tokenize: Callable[[str], list[int]], count: int, new_tokens: int
) -> tuple[bool, float, bool]:
    """Return whether token ids are equal, the largest error of logits, and whether greedy tokens are equal."""
    tokenizer = AutoTokenizer.from_pretrained(made)
    model = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32).eval()
    same_ids = all(tokenizer(text).input_ids == tokenize(text) for text in texts(count))
    error, same_greedy = 0.0, True
    for text in TEXTS:
        answer = greedy(dense, tokenize(text), new_tokens)
        same_greedy &= greedy(model, tokenizer(text).input_ids, new_tokens) == answer
        wanted, found = logits(dense, answer), logits(model, answer)
        error = max(error, float((found - wanted).norm() / wanted.norm()))
    return same_ids, error, same_greedy


@torch.inference_mode()
def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    """Return the prompt and `count` tokens, whatever the end tokens are."""
    ids, cache, step = list(prompt), None, torch.tensor([prompt])
    for _ in range(count):
        output = model(step, past_key_values=cache, use_cache=True)
        cache, step = output.past_key_values, output.logits[:, -1:].argmax(-1)
        ids.append(int(step))
    return ids


@torch.inference_mode()
def logits(model: Any, ids: list[int]) -> Tensor:
    """Return logits `[1, S, V]`."""
    return model(torch.tensor([ids])).logits


def main() -> None:
    with TemporaryDirectory() as folder:
        rows = [row for kind in KINDS for row in toy_rows(Path(folder), kind)]
        rows.append(starter_row(Path(folder)))
    print("| source | tokenizer | tokens | logits off by | greedy tokens |\n|---|---|---|--:|---|")
    for row in rows:
        same = ["the same" if equal else "OTHERS" for equal in (row.same_ids, row.same_greedy)]
        print(f"| {row.source} | {row.tokenizer} | {same[0]} | {row.error:.1e} | {same[1]} |")
    if not all(row.exact for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
