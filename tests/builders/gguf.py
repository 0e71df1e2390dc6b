"""Write toy GGUFs as llama.cpp's converter does, with each kind of tokenizer.

`Vocabulary.tokenize` is the reference: SentencePiece itself, or a BPE that searches all pairs at every step, over the
splits of llama.cpp's `llama-vocab.cpp`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import regex
import torch
from gguf import GGUFWriter, TokenType
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

DATA = Path(__file__).parents[1] / "data" / "router_fit"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {
    "gpt-2": [GPT2],
    "smollm": [r"\p{N}", GPT2],
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
    "llama-bpe": [LLAMA3],
}
ADDED = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<think>")
KINDS = (*PATTERNS, "sentencepiece")
SPELLING = bytes_to_unicode()
TEMPLATE = "{% for message in messages %}{{ bos_token + message['content'] + eos_token }}{% endfor %}"


@dataclass(frozen=True)
class Vocabulary:
    tokens: list[str]
    kinds: list[TokenType]
    tokenize: Callable[[str], list[int]]
    """Token ids of a text, by the reference, with BOS if the model wants it."""
    fields: dict[str, Any] = field(default_factory=dict)
    """The rest of `tokenizer.ggml.*`."""


@cache
def vocabulary(kind: str) -> Vocabulary:
    """Train a tokenizer on the texts of `tests/data`: one of KINDS."""
    return _sentencepiece() if kind == "sentencepiece" else _byte_level(kind)


def corpus(characters: int = 15_000) -> list[str]:
    return [path.read_text(encoding="utf-8")[:characters] for path in sorted(DATA.glob("*.txt"))]


def _byte_level(pre: str) -> Vocabulary:
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.train_from_iterator(corpus(), trainer)
    state = json.loads(trained.to_str())["model"]
    # No merges lead to the last word: only Llama 3 finds it.
    words = [*sorted(state["vocab"], key=state["vocab"].get), "Ġupcycling"]
    ranks = {tuple(merge): rank for rank, merge in enumerate(state["merges"])}
    bos = len(words)
    kinds = [TokenType.NORMAL] * bos + [TokenType.CONTROL] * 3 + [TokenType.USER_DEFINED]
    fields = {"model": "gpt2", "pre": pre, "merges": [" ".join(merge) for merge in ranks],
              "bos_token_id": bos, "eos_token_id": bos + 1, "eot_token_id": bos + 2}  # fmt: skip
    tokens = [*words, *ADDED]
    ids = {token: index for index, token in enumerate(tokens)}

    def tokenize(text: str) -> list[int]:
        found = [bos] if pre == "llama-bpe" else []
        for part in regex.split("(" + "|".join(map(regex.escape, ADDED)) + ")", text):
            whole = [part] if part in ADDED else []
            symbols = whole or [one for word in _split(part, PATTERNS[pre]) for one in _merge(word, ranks, ids, pre)]
            found += [ids[symbol] for symbol in symbols]
        return found

    return Vocabulary(tokens, kinds, tokenize, fields)


def _split(text: str, patterns: list[str]) -> list[str]:
    pieces = [text]
    for pattern in patterns:
        pieces = [part for piece in pieces for part in regex.split(f"({pattern})", piece) if part]
    return pieces


def _merge(word: str, ranks: dict[tuple[str, ...], int], ids: dict[str, int], pre: str) -> list[str]:
    symbols = [SPELLING[byte] for byte in word.encode()]
    if pre == "llama-bpe" and "".join(symbols) in ids:
        return ["".join(symbols)]
    while pairs := [(ranks[pair], i) for i, pair in enumerate(pairwise(symbols)) if pair in ranks]:
        i = min(pairs)[1]
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    return symbols


def _sentencepiece() -> Vocabulary:
    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in corpus() for line in text.splitlines()), model_writer=written,
        model_type="bpe", vocab_size=700, byte_fallback=True, normalization_rule_name="identity", split_digits=True,
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, character_coverage=0.999, minloglevel=2,
    )  # fmt: skip
    processor = SentencePieceProcessor(model_proto=written.getvalue())
    ids = range(processor.get_piece_size())
    kinds = [_sentencepiece_kind(processor, index) for index in ids]
    fields = {"model": "llama", "pre": "default", "scores": [processor.get_score(index) for index in ids],
              "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}  # fmt: skip
    tokens = [processor.id_to_piece(index) for index in ids]
    return Vocabulary(tokens, kinds, lambda text: [1, *processor.encode(text)], fields)


def _sentencepiece_kind(processor: SentencePieceProcessor, index: int) -> TokenType:
    for kind in ("unknown", "control", "byte", "unused"):
        if getattr(processor, f"is_{kind}")(index):
            return TokenType[kind.upper()]
    return TokenType.NORMAL


def toy_llama(vocab_size: int, **changes) -> LlamaForCausalLM:
    """A random Llama whose answers change with the prompt."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 6,
             "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 16384, "rms_norm_eps": 1e-5,
             "vocab_size": vocab_size, "bos_token_id": None, "eos_token_id": None}  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**sizes | changes)).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
    return model


def write_gguf(path: Path, model: LlamaForCausalLM, words: Vocabulary, metadata: dict[str, Any] | None = None) -> Path:
    """Write a model in 32 bits; `metadata` is added to the file's, and None removes a field."""
    config = model.config
    fields = {
        "general.architecture": "llama",
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_hidden_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": config.rope_parameters["rope_theta"],
        "tokenizer.ggml.tokens": words.tokens,
        "tokenizer.ggml.token_type": [int(kind) for kind in words.kinds],
        "tokenizer.chat_template": TEMPLATE,
        **{f"tokenizer.ggml.{name}": value for name, value in words.fields.items()},
        **(metadata or {}),
    }
    writer = GGUFWriter(path, fields.pop("general.architecture"))
    for name, value in fields.items():
        _add(writer, name, value)
    for name, array in _tensors(model).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: GGUFWriter, name: str, value: Any) -> None:
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
           list: writer.add_array}  # fmt: skip
    if value is not None:
        add[type(value)](name, value)


def _tensors(model: LlamaForCausalLM) -> dict[str, np.ndarray]:
    config = model.config
    names = {"embed_tokens": "token_embd", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
             "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
             "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
             "norm": "output_norm", "lm_head": "output"}  # fmt: skip
    found = {}
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if parts[-2] == "lm_head" and config.tie_word_embeddings:
            continue
        layer = f"blk.{parts[2]}." if parts[1] == "layers" else ""
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(parts[-2])
        found[f"{layer}{names[parts[-2]]}.weight"] = _permuted(value.numpy(), heads)
    if config.rope_parameters["rope_type"] == "llama3":
        found["rope_freqs.weight"] = _llama3_factors(config)
    return found


def _permuted(weight: np.ndarray, heads: int | None) -> np.ndarray:
    """Return the rows of a projection in llama.cpp's order: the two channels that rotate together are neighbours."""
    if heads is None:
        return weight
    split = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return split.swapaxes(1, 2).reshape(weight.shape)


def _llama3_factors(config: LlamaConfig) -> np.ndarray:
    """By the formula of llama.cpp's `convert_hf_to_gguf.py`, one frequency at a time."""
    rope = config.rope_parameters
    low, high, length = (rope[name] for name in ("low_freq_factor", "high_freq_factor",
                                                 "original_max_position_embeddings"))  # fmt: skip
    factors = []
    for channel in range(0, config.head_dim, 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (channel / config.head_dim)
        smooth = (length / wavelength - low) / (high - low)
        inside = 1 / ((1 - smooth) / rope["factor"] + smooth)
        factors.append(1.0 if wavelength < length / high else rope["factor"] if wavelength > length / low else inside)
    return np.array(factors, dtype=np.float32)
