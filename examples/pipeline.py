"""Generate text with transformers' `pipeline`: python -m examples.pipeline [MODEL] [PROMPT]"""

import sys

import torch
from transformers import pipeline

import jetmoe  # noqa: F401  makes pipelines and Auto classes use this package

MODEL, PROMPT = "jetmoe/jetmoe-8b", "The stock market rallied today after positive economic news"


def main(model: str = MODEL, prompt: str = PROMPT) -> None:
    generate = pipeline(task="text-generation", model=model, dtype=torch.bfloat16, device_map="auto")
    print(generate(prompt, max_new_tokens=40)[0]["generated_text"])


if __name__ == "__main__":
    main(*sys.argv[1:])
