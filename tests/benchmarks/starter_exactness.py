"""Prints how exactly the starter computes the dense model that it is made of, and fails where it does not.

    python -m tests.benchmarks.starter_exactness          # 64 greedy tokens on 8 prompts; some minutes on two cores

Both unmodified transformers and `jetmoe` load the starter in fp32. The error of logits is the norm of the difference,
divided by the norm of the dense model's, over a prompt and its answer.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from jetmoe import JetMoeForCausalLM  # the Auto classes return it
from jetmoe.dense import load_dense
from studio.backend.models import starter

PROMPTS = [
    "The capital of France is",
    "def quicksort(items):\n",
    "Il était une fois, dans un petit village,",
    "En un lugar de la Mancha,",
    "The second law of thermodynamics states that",
    "Call me Ishmael.",
    "<|im_start|>user\nWrite a haiku about the sea.<|im_end|>\n<|im_start|>assistant\n",
    "1, 1, 2, 3, 5, 8, 13,",
]
LARGEST_ERROR = 1e-4
# A process of its own: importing jetmoe makes the Auto classes return ours.
STOCK_LOGITS = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
assert type(model).__module__ == "transformers.models.jetmoe.modeling_jetmoe" and "jetmoe" not in sys.modules
with torch.no_grad():
    torch.save([model(ids).logits for ids in torch.load(sys.argv[2], weights_only=True)], sys.argv[3])
"""


class Answer(NamedTuple):
    start: int
    """Length of the prompt."""
    token_ids: Tensor
    """`[1, S]`, prompt and answer."""
    logits: Tensor
    """`[1, S, V]`"""


class Exactness(NamedTuple):
    error: float
    """The largest of all answers."""
    same_tokens: bool
    """Whether greedy decoding takes the dense model's tokens, everywhere."""


@torch.no_grad()
def dense_answers(
    dense: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], count: int
) -> list[Answer]:
    """What the dense model answers greedily, `count` tokens each."""
    answers = []
    for prompt in prompts:
        read = tokenizer(prompt, return_tensors="pt")
        ids = dense.generate(**read, **greedy(dense, count))
        answers.append(Answer(read.input_ids.shape[1], ids, dense(ids).logits))
    return answers


def greedy(model: PreTrainedModel, count: int) -> dict:
    """Return arguments of `generate`. The configuration of both models has the same end token."""
    ends = {"eos_token_id": model.config.eos_token_id}
    return {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, **ends}


def stock_exactness(path: Path, answers: list[Answer], eos_token_id: int) -> Exactness:
    """Of unmodified transformers: at every place of the answer, the token that greedy decoding would take."""
    with TemporaryDirectory() as folder:
        ids, logits = Path(folder) / "ids.pt", Path(folder) / "logits.pt"
        torch.save([answer.token_ids for answer in answers], ids)
        subprocess.run([sys.executable, "-c", STOCK_LOGITS, path, ids, logits], check=True)
        found = torch.load(logits, weights_only=True)
    same = True
    for answer, each in zip(answers, found, strict=True):
        chosen = each[0, answer.start - 1 : -1].clone()
        chosen[:, eos_token_id] = -torch.inf  # `greedy` asks for an answer that goes on
        same &= chosen.argmax(-1).tolist() == answer.token_ids[0, answer.start :].tolist()
    return Exactness(max(map(relative_error, found, answers)), same)


@torch.no_grad()
def our_exactness(path: Path, answers: list[Answer]) -> Exactness:
    """Of `jetmoe`, which answers anew."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    assert isinstance(model, JetMoeForCausalLM)
    error = max(relative_error(model(answer.token_ids).logits, answer) for answer in answers)
    written = []
    for start, ids, _ in answers:
        options = greedy(model, ids.shape[1] - start)
        written.append(model.generate(ids[:, :start], attention_mask=torch.ones(1, start), **options).tolist())
    return Exactness(error, written == [answer.token_ids.tolist() for answer in answers])


def relative_error(logits: Tensor, answer: Answer) -> float:
    return float((logits - answer.logits).norm() / answer.logits.norm())


def main() -> None:
    path = starter.build()
    tokenizer = AutoTokenizer.from_pretrained(path)
    with TemporaryDirectory() as folder:
        dense = load_dense(starter.dense_gguf(Path(folder), lambda fraction, text: None)).eval()
    answers = dense_answers(dense, tokenizer, PROMPTS, 64)
    found = {
        "transformers": stock_exactness(path, answers, tokenizer.eos_token_id),
        "jetmoe": our_exactness(path, answers),
    }
    for name, exactness in found.items():
        tokens = "the same tokens" if exactness.same_tokens else "OTHER TOKENS"
        print(f"{name}: logits off by {exactness.error:.1e} at most, {tokens} (64 each on {len(PROMPTS)} prompts)")
    if any(error > LARGEST_ERROR or not same for error, same in found.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
