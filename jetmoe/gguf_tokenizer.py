"""Convert the tokenizer of a .gguf file to a transformers tokenizer with its chat template.

    tokenizer_from_gguf(Path("SmolLM2-135M-Instruct.Q4_1.gguf")).save_pretrained(directory)

For byte-pair vocabularies, transformers ignores `tokenizer.ggml.pre`, the name of the pre-tokenizer that splits text
before the merges. "2024" would then become other tokens than those that the model was trained on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CONTROL = 3  # gguf.TokenType
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
PRE_TOKENIZERS = {
    "gpt-2": BYTE_LEVEL,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL]),
}
FIELDS = ("model", "pre", "tokens", "merges", "token_type", "bos_token_id", "eos_token_id", "unknown_token_id",
          "padding_token_id")  # fmt: skip


def tokenizer_from_gguf(path: Path) -> PreTrainedTokenizerFast:
    """Build the tokenizer.

    Raises:
        ValueError: the file contains an unsupported tokenizer.
    """
    metadata = _metadata(path)
    if metadata["model"] != "gpt2" or metadata["pre"] not in PRE_TOKENIZERS:
        raise ValueError(
            f"{path.name} has a {metadata['model']!r} tokenizer with pre-tokenizer {metadata['pre']!r}; only 'gpt2' "
            f"with {', '.join(PRE_TOKENIZERS)} is supported. Use the model's Hugging Face folder instead."
        )
    tokens = metadata["tokens"]
    special = [token for token, kind in zip(tokens, metadata["token_type"], strict=True) if kind == CONTROL]
    names = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id",
             "pad_token": "padding_token_id"}  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(metadata, special),
        chat_template=metadata["chat_template"],
        clean_up_tokenization_spaces=False,
        model_max_length=metadata["context_length"],
        **{name: tokens[metadata[key]] for name, key in names.items() if metadata[key] is not None},
    )


def _tokenizer(metadata: dict[str, Any], special: list[str]) -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate(metadata["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[metadata["pre"]]
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return tokenizer


def _metadata(path: Path) -> dict[str, Any]:
    fields = GGUFReader(path).fields

    def value(name: str) -> Any:
        return fields[name].contents() if name in fields else None

    return {
        **{name: value(f"tokenizer.ggml.{name}") for name in FIELDS},
        "chat_template": value("tokenizer.chat_template"),
        "context_length": value(f"{value('general.architecture')}.context_length"),
    }
