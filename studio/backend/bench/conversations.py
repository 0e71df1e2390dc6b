"""`bench generate`: several conversations at once, in a thread each, as people who chat with one studio."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from studio.backend.bench.peers import Timed
from studio.backend.chat.decoder import Decoder

COUNTS = {"jetmoe-studio-2-answers": 2, "jetmoe-studio-4-answers": 4, "jetmoe-studio-8-answers": 8}
"""Number of conversations, by the name of the system."""


def several(decoder: Decoder, prompts: Sequence[Sequence[int]], new_tokens: int) -> Callable[[], Timed]:
    """Prepare an answer to each prompt; the seconds are those of one answer's share."""
    decoders = [decoder, *(decoder.beside() for _ in prompts[1:])]

    def once() -> Timed:
        start = time.perf_counter()
        logits = [one.prefill(prompt, new_tokens, reuse=False) for one, prompt in zip(decoders, prompts, strict=True)]
        begun = time.perf_counter()
        with ThreadPoolExecutor(len(decoders)) as pool:
            list(pool.map(lambda one, first: _write(one, first, new_tokens), decoders, logits))
        step_s = (time.perf_counter() - begun) / (len(prompts) * new_tokens)
        return (begun - start) / len(prompts), [step_s] * new_tokens

    return once


@torch.no_grad()
def _write(decoder: Decoder, logits: Tensor, new_tokens: int) -> None:
    for _ in range(new_tokens):
        logits = decoder.step(int(logits.argmax()))
