"""Random models in the shape of released ones, created on the device, for benchmarks without the real weights.

Speed and memory do not depend on the values, so all experts of a tensor share the same ones.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from studio.errors import StudioError

# From the released config.json (jetmoe/jetmoe-8b).
SHAPES: dict[str, dict[str, Any]] = {
    "jetmoe-8b": {
        "model_type": "jetmoe",
        "vocab_size": 32000,
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "num_key_value_heads": 16,
        "kv_channels": 128,
        "num_experts_per_tok": 2,
        "num_local_experts": 8,
        "intermediate_size": 5632,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
    # From the released config.json (allenai/OLMoE-1B-7B-0924).
    "olmoe-1b-7b": {
        "model_type": "olmoe",
        "vocab_size": 50304,
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "num_experts_per_tok": 8,
        "num_experts": 64,
        "intermediate_size": 1024,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
}


def settings(shape: str) -> dict[str, Any]:
    """Return the configuration of a shape, for any class; of `NAME:LAYERS`, with fewer layers.

    Raises:
        StudioError: the shape is unknown, or the number of layers is none that it can have.
    """
    name, _, layers = shape.partition(":")
    if name not in SHAPES:
        raise StudioError(f"There is no shape {name!r}; pick one of {', '.join(SHAPES)}.")
    whole, most = SHAPES[name], SHAPES[name]["num_hidden_layers"]
    if not layers:
        return whole
    if not (layers.isdecimal() and 1 <= int(layers) <= most):
        raise StudioError(f"{layers!r} is no number of layers; {name} has {most}, such as {name}:2 for the first two.")
    return {**whole, "num_hidden_layers": int(layers)}


def ours(shape: str, quantization: Any, dtype: torch.dtype, device: str, **changes: Any) -> Any:
    """Build our model of that shape as a checkpoint is loaded: slice by slice, quantized on the way.

    Args:
        changes: fields of the configuration that replace those of the shape.
    """
    import jetmoe  # noqa: F401  registers our classes
    from jetmoe.loading.checkpoint import Stored
    from jetmoe.loading.load import build

    class Random(Stored):
        def read(self, index: int | None = None) -> Tensor:
            return _values(self.shape, device).clone() if index is None else _values(self.shape[1:], device)

    config: Any = AutoConfig.for_model(**{**settings(shape), **changes})
    with torch.device("meta"):
        state = AutoModelForCausalLM.from_config(config).state_dict()
    if config.tie_word_embeddings:
        state.pop("lm_head.weight")
    stored: dict[str, Any] = {
        name: Random(name, Path(), torch.bfloat16, tuple(tensor.shape), 0) for name, tensor in state.items()
    }
    return build(AutoModelForCausalLM, config, stored, quantization=quantization, dtype=dtype, device=device)


def stock(shape: str, four_bit: bool, dtype: torch.dtype, device: str) -> Any:
    """Build transformers' own model of that shape. 4-bit covers only linear layers, as with its `load_in_4bit`."""
    config = AutoConfig.for_model(**settings(shape))
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    model.to(dtype).to_empty(device=device)
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    model.tie_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(_values(tuple(parameter.shape[-2:]), device))
    return _linears_in_4bit(model, dtype, device) if four_bit else model


def _linears_in_4bit(model: Any, dtype: torch.dtype, device: str) -> Any:
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and name != "lm_head":
            linear: Any = Linear4bit(module.in_features, module.out_features, False, dtype, False, "nf4", device="meta")
            values: Any = Params4bit(
                module.weight.data, False, compress_statistics=False, quant_type="nf4", module=linear
            )
            linear.weight = values.to(device)
            model.set_submodule(name, linear)
    return model


@lru_cache(maxsize=2)
def _values(shape: tuple[int, ...], device: str) -> Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16, device=device)
    return torch.randn(shape, dtype=torch.bfloat16, device=device) * 0.02
