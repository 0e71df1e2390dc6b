"""Build a transformers tokenizer from the metadata of a .gguf file, with its chat template.

    tokenizer_from_gguf(Path("SmolLM2-135M-Instruct.Q4_1.gguf")).save_pretrained(directory)

`tokenizer.ggml.model` is `gpt2` for byte-level BPE and `llama` for SentencePiece. For the first, `tokenizer.ggml.pre`
names the pre-tokenizer that splits text before the merges. transformers' own conversion lacks some of them (`smollm`,
`default`) and applies merges where Llama 3 looks up whole words. Text then becomes other tokens than those that the
model was trained on. The splits are those of llama.cpp's `llama-vocab.cpp`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_utils_base import generate_merges

from jetmoe.gguf_file import read_gguf
from jetmoe.loading.checkpoint import CheckpointError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # gguf.TokenType
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")


class Splits(NamedTuple):
    pre_tokenizer: pre_tokenizers.PreTokenizer
    whole_words: bool = False
    """Whether a word of the vocabulary becomes one token, even if no merges lead to it."""
    add_bos: bool = False
    """Whether texts start with the BOS token, where the file does not say so."""


def _isolated(*patterns: str) -> pre_tokenizers.PreTokenizer:
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*splits, BYTES])


BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
SPLITS = {
    "gpt-2": Splits(BYTE_LEVEL),
    "smollm": Splits(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL])),
    "default": Splits(_isolated(*DEFAULT)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), Splits(_isolated(LLAMA3), whole_words=True, add_bos=True)),
}
FIELDS = (
    "model", "pre", "tokens", "merges", "scores", "token_type", "bos_token_id", "eos_token_id", "unknown_token_id",
    "padding_token_id", "add_bos_token", "add_eos_token", "add_space_prefix", "remove_extra_whitespaces",
)  # fmt: skip
SPECIAL = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id",
           "pad_token": "padding_token_id"}  # fmt: skip
# What llama.cpp takes for SentencePiece where a file is silent.
SENTENCEPIECE = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, "add_bos_token": True,
                 "add_space_prefix": True}  # fmt: skip


def tokenizer_from_gguf(path: Path) -> PreTrainedTokenizerFast:
    """Build the tokenizer of a file, reading only its metadata.

    Raises:
        CheckpointError: the file is damaged, or its tokenizer is not supported.
    """
    return tokenizer_from_metadata(path.name, read_gguf(path).metadata)


def tokenizer_from_metadata(name: str, metadata: dict[str, Any]) -> PreTrainedTokenizerFast:
    """Build the tokenizer from the metadata of the file `name`.

    Raises:
        CheckpointError: the tokenizer is damaged or not supported.
    """
    values: dict[str, Any] = {field: metadata.get(f"tokenizer.ggml.{field}") for field in FIELDS}
    if values["model"] == "llama":
        values |= {field: default for field, default in SENTENCEPIECE.items() if values[field] is None}
    _check(name, values)
    tokenizer = _sentencepiece(values) if values["model"] == "llama" else _byte_level(values)
    for kinds, is_special in (((UNKNOWN, CONTROL), True), ((USER_DEFINED,), False)):
        added = [AddedToken(text, normalized=False, special=is_special) for text in _texts(values, kinds)]
        (tokenizer.add_special_tokens if is_special else tokenizer.add_tokens)(added)
    _add_bos_and_eos(tokenizer, values)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=metadata.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        model_max_length=metadata.get("llama.context_length"),
        **{role: values["tokens"][values[key]] for role, key in SPECIAL.items() if values[key] is not None},
    )


def _check(name: str, values: dict[str, Any]) -> None:
    folder = "Use the model's Hugging Face folder instead."
    kind, pre = values["model"], values["pre"]
    if kind not in ("gpt2", "llama"):
        raise CheckpointError(f"{name} has a {kind!r} tokenizer; only 'gpt2' and 'llama' are supported. {folder}")
    if kind == "gpt2" and pre not in SPLITS:
        raise CheckpointError(
            f"{name} has a 'gpt2' tokenizer with pre-tokenizer {pre!r}; supported are {', '.join(SPLITS)}. {folder}"
        )
    if kind == "llama" and values["remove_extra_whitespaces"]:
        raise CheckpointError(f"{name} has a tokenizer that drops repeated spaces, which is not supported. {folder}")
    if problem := _damage(values):
        raise CheckpointError(f"{name} has a damaged tokenizer: {problem}. Download it again, or convert it again.")


def _damage(values: dict[str, Any]) -> str | None:
    """Return what is wrong with the lists of a tokenizer, or None."""
    tokens = values["tokens"] or []
    count = len(tokens)
    extra = "scores" if values["model"] == "llama" else "merges"
    ids = {key: values[key] for key in SPECIAL.values() if values[key] is not None}
    if not tokens or values[extra] is None or values["token_type"] is None:
        return f"it lacks tokens, token types or {extra}"
    if len(set(tokens)) < count:
        return "two tokens are equal"
    if len(values["token_type"]) != count or (extra == "scores" and len(values[extra]) != count):
        return f"it has {count} tokens, but not as many token types and scores"
    if outside := [f"{key} is {value}" for key, value in ids.items() if not 0 <= value < count]:
        return f"{outside[0]} and there are {count} tokens"
    known, merges = set(tokens), values["merges"] if extra == "merges" else []
    unknown = [merge for merge in merges if not {*merge.split(" "), merge.replace(" ", "")} <= known]
    return f"the merge {unknown[0]!r} has no token" if unknown else None


def _byte_level(values: dict[str, Any]) -> Tokenizer:
    splits = SPLITS[values["pre"]]
    if values["add_bos_token"] is None:
        values["add_bos_token"] = splits.add_bos
    vocabulary = {token: index for index, token in enumerate(values["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in values["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=splits.whole_words))
    tokenizer.pre_tokenizer = splits.pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(values: dict[str, Any]) -> Tokenizer:
    """Build a BPE whose merges are all splits of a piece, the pieces with the highest scores first."""
    vocabulary = {token: index for index, token in enumerate(values["tokens"])}
    scores = dict(zip(values["tokens"], values["scores"], strict=True))
    pieces = {text: scores[text] for text in _texts(values, (NORMAL,))}
    merges = generate_merges(vocabulary, pieces)
    unknown = values["tokens"][values["unknown_token_id"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    prefix = values["add_space_prefix"]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if prefix else parts)
    return tokenizer


def _texts(values: dict[str, Any], kinds: tuple[int, ...]) -> list[str]:
    return [token for token, kind in zip(values["tokens"], values["token_type"], strict=True) if kind in kinds]


def _add_bos_and_eos(tokenizer: Tokenizer, values: dict[str, Any]) -> None:
    bos = values["bos_token_id"] if values["add_bos_token"] else None
    eos = values["eos_token_id"] if values["add_eos_token"] else None
    ids = {values["tokens"][one]: one for one in (bos, eos) if one is not None}
    if not ids:
        return
    start = [] if bos is None else [values["tokens"][bos]]
    end = [] if eos is None else [values["tokens"][eos]]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*start, "$A", *end],
        pair=[*start, "$A", *end, *(f"{one}:1" for one in start), "$B:1", *(f"{one}:1" for one in end)],
        special_tokens=list(ids.items()),
    )
