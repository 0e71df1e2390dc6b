"""Read the metadata of a .gguf file of the Llama architecture: configuration, shapes of the tensors, end tokens.

    file = read_gguf(Path("SmolLM2-135M-Instruct.Q4_1.gguf"))
    file.config, file.shapes, file.generation

The file is mapped into memory, so that only its header is read. `read_gguf` checks what transformers does not: it
ignores rotary scaling, which is in `llama.rope.scaling.*`, or for Llama 3 in the tensor `rope_freqs.weight`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType, GGUFReader
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from jetmoe.llama_config import llama_config
from jetmoe.loading.checkpoint import CheckpointError

CONTROL = 3  # gguf.TokenType
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
FIELDS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "vocab_size": "vocab_size",
}
REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps")
FREQUENCIES = "rope_freqs.weight"
SCALING = {"type", "factor", "original_context_length", "finetuned"}
# Computations that JetMoE does not have; 0 stands for none.
OTHER = ("attention.sliding_window", "attention.scale", "attention.clamp_kqv", "attention.temperature_scale",
         "embedding_scale", "logit_scale", "residual_scale", "expert_count")  # fmt: skip
# Converters write these values of Llama 3 into every file. They store their effect, not the values.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SENTENCEPIECE_EOS = 2  # of a file that does not name it
# Older files name one end token only. llama.cpp also ends at tokens with these names.
END_NAMES = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>")
SAMPLING = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
            "penalty_repeat": "repetition_penalty"}  # fmt: skip


@dataclass(frozen=True)
class GGUFFile:
    path: Path
    metadata: dict[str, Any]
    config: LlamaConfig
    shapes: dict[str, tuple[int, ...]]
    """Shape of each tensor, under its name in transformers; unknown tensors keep their name."""

    @property
    def generation(self) -> dict[str, Any]:
        """The fields of generation_config.json: special tokens, and sampling if the file has its own."""
        found = {name: self.metadata.get(f"general.sampling.{key}") for key, name in SAMPLING.items()}
        sampling = {name: value for name, value in found.items() if value is not None}
        ends = _end_tokens(self.metadata)
        return {
            "bos_token_id": self.config.bos_token_id,
            "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
            "pad_token_id": self.config.pad_token_id,
            **({"do_sample": True} | sampling if sampling else {}),
        }


def is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def read_gguf(path: Path) -> GGUFFile:
    """Read everything but the weights.

    Raises:
        CheckpointError: the file is damaged, one of several, of another architecture, or has an unknown rotary scaling.
    """
    try:
        reader = GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        shapes = {_name(tensor.name): tuple(map(int, reversed(tensor.shape))) for tensor in reader.tensors}
    except (OSError, KeyError, IndexError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path} can't be read as a GGUF: {error}. Download it again.") from error
    _check(path, metadata, reader)
    factors = next((torch.from_numpy(one.data.copy()) for one in reader.tensors if one.name == FREQUENCIES), None)
    shapes.pop(FREQUENCIES, None)
    return GGUFFile(path, metadata, _config(path, metadata, factors, "lm_head.weight" not in shapes), shapes)


def _check(path: Path, metadata: dict[str, Any], reader: GGUFReader) -> None:
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise CheckpointError(f"{path.name} is a {architecture!r} model; upcycling needs the architecture 'llama'.")
    if metadata.get("split.count", 1) > 1:
        raise CheckpointError(
            f"{path.name} is one of {metadata['split.count']} parts. Join them with `llama-gguf-split --merge` first."
        )
    if unreadable := {one.tensor_type for one in reader.tensors if not _is_readable(one.tensor_type)}:
        names = ", ".join(sorted(kind.name for kind in unreadable))
        raise CheckpointError(f"{path.name} holds {names}, which can't be dequantized. Use a Q8_0 or F16 file.")
    if other := [key for key in OTHER if metadata.get(f"llama.{key}")]:
        raise CheckpointError(f"{path.name} sets llama.{other[0]}, which JetMoE does not have. Use another model.")
    missing = [FIELDS[name] for name in REQUIRED if f"llama.{FIELDS[name]}" not in metadata]
    if missing:
        raise CheckpointError(f"{path.name} lacks llama.{', llama.'.join(missing)}. Download it again.")


def _is_readable(kind: GGMLQuantizationType) -> bool:
    from gguf.quants import _type_traits  # the only list of what `dequantize` can do

    return kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16) or kind in _type_traits


def _name(name: str) -> str:
    """Return a tensor's name in transformers: `blk.0.attn_q.weight` is `model.layers.0.self_attn.q_proj.weight`."""
    match = re.fullmatch(r"(blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if not match or match[3] not in NAMES:
        return name
    layer = f"model.layers.{match[2]}." if match[1] else ""
    return f"{layer}{NAMES[match[3]]}.{match[4]}"


def _config(path: Path, metadata: dict[str, Any], factors: Tensor | None, tied: bool) -> LlamaConfig:
    found: dict[str, Any] = {"vocab_size": len(metadata.get("tokenizer.ggml.tokens") or [])}
    found |= {name: metadata[f"llama.{key}"] for name, key in FIELDS.items() if f"llama.{key}" in metadata}
    special = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    found |= {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in special.items()}
    rope = {"rope_type": "default", "rope_theta": metadata.get("llama.rope.freq_base", 10000.0)}
    more = {"tie_word_embeddings": tied, "rope_parameters": rope}
    config = llama_config(f"The metadata of {path}", found | more)
    rotated = metadata.get("llama.rope.dimension_count", config.head_dim)
    if rotated != config.head_dim:
        raise CheckpointError(
            f"{path.name} rotates {rotated} of the {config.head_dim} channels of a head; upcycling needs all of them. "
            "Use another model."
        )
    config.rope_parameters = _rope(path, metadata, config, factors)
    return config


def _rope(path: Path, metadata: dict[str, Any], config: LlamaConfig, factors: Tensor | None) -> dict[str, Any]:
    """Return `rope_parameters`; `factors` `[C / 2]` divide the frequencies."""
    prefix = "llama.rope.scaling."
    scaling = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    kind, factor = scaling.get("type", "none"), scaling.get("factor", metadata.get("llama.rope.scale_linear", 1.0))
    base = dict(config.rope_parameters or {})
    if unknown := sorted(scaling.keys() - SCALING):
        raise CheckpointError(
            f"{path.name} scales rotary embeddings with {prefix}{unknown[0]}, which is not supported. Use the model's "
            "Hugging Face folder instead."
        )
    if factors is not None and kind == "none":
        return _llama3(path, config, base, factors)
    if kind in ("none", "linear") and factors is None:
        return base if factor == 1.0 else base | {"rope_type": "linear", "factor": factor}
    if kind == "yarn" and factors is None and "original_context_length" in scaling:
        length = scaling["original_context_length"]
        return base | {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": length}
    raise CheckpointError(
        f"{path.name} scales rotary embeddings with type {kind!r}, which is not supported. Use the model's Hugging "
        "Face folder instead."
    )


def _llama3(path: Path, config: LlamaConfig, base: dict[str, Any], factors: Tensor) -> dict[str, Any]:
    """Return the parameters of Llama 3 whose frequencies are the default ones divided by `factors`."""
    channels = 2 * len(factors)
    if config.head_dim != channels:
        raise CheckpointError(f"{FREQUENCIES} of {path.name} is for {channels} channels, a head has {config.head_dim}.")
    if (factors == 1).all():
        return base
    found = base | {"rope_type": "llama3", "factor": float(factors.max()), **LLAMA3}
    scaled = LlamaConfig(**config.to_dict() | {"rope_parameters": found})
    exponents = torch.arange(0, channels, 2).float() / channels
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](scaled, torch.device("cpu"))
    expected = base["rope_theta"] ** -exponents / frequencies
    if not torch.allclose(expected, factors.float(), rtol=1e-4):
        raise CheckpointError(
            f"{path.name} scales rotary embeddings with a table ({FREQUENCIES}) that is not Llama 3's. Use the model's "
            "Hugging Face folder instead."
        )
    return found


def _end_tokens(metadata: dict[str, Any]) -> list[int]:
    """Return the ids of the tokens that end an answer, the one named by the file first."""
    ids = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    if ids[0] is None and metadata.get("tokenizer.ggml.model") == "llama":
        ids[0] = SENTENCEPIECE_EOS
    kinds = metadata.get("tokenizer.ggml.token_type") or []
    tokens = zip(metadata.get("tokenizer.ggml.tokens") or [], kinds, strict=False)
    ids += [index for index, (token, kind) in enumerate(tokens) if kind == CONTROL and token in END_NAMES]
    return list(dict.fromkeys(end for end in ids if end is not None))
