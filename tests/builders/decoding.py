"""A prompt, and the steps that any way of decoding takes after it."""

import torch
from transformers import StaticCache

from jetmoe import RoutingRecorder

PROMPT = torch.randint(3, 99, (1, 9), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def decode(model, run, tokens=6):
    recorder = RoutingRecorder(model, 64)
    cache = StaticCache(config=model.config, max_cache_len=32)
    logits = [model(PROMPT, past_key_values=cache, recorder=recorder).logits[:, -1]]
    for i in range(tokens):
        token = torch.tensor([[5 + 3 * i]])
        logits.append(run(token, torch.tensor([[9 + i]]), cache, recorder=recorder))
    return torch.stack(logits), recorder.trace(range(9 + tokens), [""] * (9 + tokens), False)
