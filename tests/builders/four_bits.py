"""Toys in 4 bits, the same models with plain weights, and how far apart roundings may be."""

import bitsandbytes.functional as bnb
import torch
from transformers import AutoModelForCausalLM

from jetmoe.loading.load import load
from jetmoe.nf4.tensor import NF4Tensor
from tests.builders.toy_model import toy_model

WIDE = {"hidden_size": 64, "intermediate_size": 64, "kv_channels": 32}


def assert_rounded(result, expected, products=1):
    """Equal up to the roundings to bf16 of a few products, one after the other."""
    atol = products * 2**-7 * float(expected.abs().max())
    torch.testing.assert_close(result.float(), expected, rtol=2**-6, atol=atol)


def four_bit_toy(folder, dtype, double=False, **changes):
    toy_model(**{**WIDE, **changes}).to(dtype).save_pretrained(folder)
    return load(AutoModelForCausalLM, folder, quantization="nf4", double_quantization=double, dtype=dtype)


def dequantized(model):
    """The same model with plain weights."""
    state = dict(model.named_parameters())
    for name, parameter in model.named_parameters():
        if isinstance(parameter, NF4Tensor):
            state[name] = parameter.dequantize()
        elif hasattr(parameter, "quant_state"):
            state[name] = bnb.dequantize_4bit(parameter.data, parameter.quant_state)
    plain = type(model)(model.config).to(model.dtype).eval().requires_grad_(False)
    tied = ["lm_head.weight"] if model.config.tie_word_embeddings else []
    assert plain.load_state_dict(state, strict=False).missing_keys == tied
    return plain
