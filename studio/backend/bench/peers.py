"""Peers that run the dense twin of the starter, with the 4-bit weights that the starter was made from.

Each function returns one that reads the prompt and writes greedy tokens, and returns the seconds of both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

Timed = tuple[float, list[float]]
"""Seconds of reading the prompt, and of each step after it."""


def llama_cpp(path: str, prompt: list[int], new_tokens: int, threads: int) -> Callable[[], Timed]:
    import numpy as np
    from llama_cpp import Llama, llama_get_logits_ith

    model = Llama(path, n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False)

    def read(ids: list[int]) -> int:
        model.eval(ids)
        logits = llama_get_logits_ith(model.ctx, -1)
        return int(np.ctypeslib.as_array(logits, (model.n_vocab(),)).argmax())

    def once() -> Timed:
        model.reset()
        times = [time.perf_counter()]
        token = read(prompt)
        times.append(time.perf_counter())
        for _ in range(new_tokens):
            token = read([token])
            times.append(time.perf_counter())
        prefill_s, *steps = (end - start for start, end in pairwise(times))
        return prefill_s, steps

    return once


def openvino(path: str, prompt: list[int], new_tokens: int, threads: int) -> Callable[[], Timed]:
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    pipeline = genai.LLMPipeline(path, "CPU", {"INFERENCE_NUM_THREADS": threads})
    ids = np.array([prompt], dtype=np.int64)
    inputs: Any = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
    config = genai.GenerationConfig(max_new_tokens=new_tokens + 1, ignore_eos=True)

    def once() -> Timed:
        metrics = pipeline.generate(inputs, config).perf_metrics.raw_metrics
        prefill_s, *steps = (microseconds / 1e6 for microseconds in metrics.token_infer_durations)
        return prefill_s, steps

    return once


PEERS = {"llama.cpp": ("llama_cpp", llama_cpp), "OpenVINO": ("openvino_genai", openvino)}
"""Package to install, and function, of each."""
