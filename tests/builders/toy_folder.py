"""A two-layer random JetMoE in a folder, with a tokenizer of bytes and a chat template: what training tests train."""

from __future__ import annotations

import json
from pathlib import Path
from string import ascii_letters

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from jetmoe import JetMoeConfig, JetMoeForSequenceClassification
from tests.builders.toy_model import toy_model

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Wide enough for 4 bits, small enough for a step in milliseconds; learns a sentence in some dozens of them.
SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "kv_channels": 32,
    "intermediate_size": 64,
    "initializer_range": 0.1,
    "max_position_embeddings": 512,
    "eos_token_id": 258,
}


def toy_folder(folder: Path, **changes) -> Path:
    """Writes model and tokenizer; `changes` are of the model's configuration."""
    toy_model(**{**SIZES, **changes}).save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return folder


def small_olmoe(folder: Path, **changes) -> Path:
    """A spelling OLMoE in the layout of the releases: one tensor for each expert, in files that an index lists."""
    sizes = {"family": "olmoe", "num_hidden_layers": 4, "num_experts": 16, "num_experts_per_tok": 4}
    return spelling_toy(folder, "1MB", **{**sizes, **changes})


def spelling_toy(folder: Path, max_shard_size: str = "5GB", **changes) -> Path:
    """A toy whose answers are letters, and end by nothing but their length. One of random bytes is empty at times, or
    over before it can be stopped."""
    tokenizer = toy_tokenizer()
    # Of this seed, no two of 64 sampled answers of 16 tokens are the same.
    model = toy_model(**{"seed": 3, **SIZES, "eos_token_id": None, "tie_word_embeddings": False, **changes})
    letters = tokenizer.convert_tokens_to_ids(list(ascii_letters))
    with torch.no_grad():
        rows = torch.zeros_like(model.lm_head.weight)  # [V, D]
        # Wide enough for a letter to win, and narrow enough for another one the next time.
        rows[letters] = 0.6 * torch.randn(len(letters), rows.shape[1])
        model.lm_head.weight.copy_(rows)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    return folder


def toy_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|pad|>", "<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|im_end|>", chat_template=TEMPLATE
    )


def toy_rows(path: Path, count: int = 40) -> Path:
    """Questions with short answers that a toy can learn."""
    rows = [{"prompt": f"Say {i}", "completion": f"{i} is {'even' if i % 2 == 0 else 'odd'}"} for i in range(count)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def classifier_folder(folder: Path, labels: list[str], problem: str = "single_label_classification") -> str:
    """A toy with a head of random weights, as a merged export is."""
    toy_folder(folder)
    names = dict(enumerate(labels))
    config = JetMoeConfig.from_pretrained(
        folder,
        id2label=names,
        label2id={name: i for i, name in names.items()},
        num_labels=len(labels),
        problem_type=problem,
        pad_token_id=256,
    )
    JetMoeForSequenceClassification(config).save_pretrained(folder)
    return str(folder)
