"""Generate text with a static cache, in 16 bits or in 4: python -m examples.generate [MODEL] [nf4]"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

import jetmoe  # noqa: F401  makes Auto classes use this package

PROMPT = "The stock market rallied today after positive economic news"


def main(model_id: str = "jetmoe/jetmoe-8b", precision: str = "bf16") -> None:
    # torchao and other methods quantize linear layers and no expert, so they are refused.
    quantization = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True)} if precision == "nf4" else {}
    model = AutoModelForCausalLM.from_pretrained(
        model_id, dtype=torch.bfloat16, device_map="auto", attn_implementation="sdpa", **quantization
    )
    tokenizer = AutoTokenizer.from_pretrained(model_id)
    inputs = tokenizer(PROMPT, return_tensors="pt").to(model.device)
    output = model.generate(**inputs, max_new_tokens=40, cache_implementation="static")
    print(tokenizer.decode(output[0], skip_special_tokens=True))
    print(f"{model.get_memory_footprint() / 2**30:.2f} GiB of weights")


if __name__ == "__main__":
    main(*sys.argv[1:])
