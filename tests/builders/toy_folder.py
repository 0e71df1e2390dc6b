"""A two-layer random JetMoE in a folder, with a tokenizer of bytes and a chat template: what training tests train."""

from __future__ import annotations

import json
from pathlib import Path

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
