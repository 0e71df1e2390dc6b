"""Build the configuration of a dense Llama-architecture checkpoint from fields that may be damaged."""

from __future__ import annotations

from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import LlamaConfig

from jetmoe.loading.checkpoint import CheckpointError

COUNTS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads", "head_dim", "max_position_embeddings")  # fmt: skip


def llama_config(where: object, fields: dict[str, Any]) -> LlamaConfig:
    """Return the configuration with these fields.

    Raises:
        CheckpointError: a field is invalid; the message names `where` it is.
    """
    wrong = [f"{name} is {fields[name]!r}" for name in COUNTS if not _is_count(fields.get(name, 1))]
    eps = fields.get("rms_norm_eps", 1.0)
    if not isinstance(eps, float) or eps <= 0:
        wrong.append(f"rms_norm_eps is {eps!r}")
    if wrong:
        raise CheckpointError(f"{where} has invalid values: {', '.join(wrong)}. Download it again.")
    try:
        return LlamaConfig.from_dict(fields)
    except (StrictDataclassError, TypeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split()).rstrip(".")  # transformers' messages have several lines
        raise CheckpointError(f"{where} has invalid values: {reason}. Download it again.") from error


def _is_count(value: object) -> bool:
    return value is None or (isinstance(value, int) and value >= 1)  # transformers derives what is null
