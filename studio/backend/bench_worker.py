"""One system of a benchmark, in a process of its own; prints one JSON line. Started by `studio/backend/bench.py`.

Nothing at the top of this file may import `jetmoe`: it would take the place of transformers' own JetMoE.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
Work = dict[str, Any]
# The first of each is a step that a graph may still be captured or a buffer still be made in.
Timed = tuple[float, list[float]]


def main(work: Work) -> dict[str, Any]:
    torch.set_num_threads(work["threads"])
    if work["bench"] == "load":
        return bench_load(work)
    if work["system"] == "llama.cpp":
        return bench_llama_cpp(work)
    model, _ = load_model(work)
    once, note = {"transformers": stock}.get(work["system"], ours)(model, work)
    once()  # compiles, fills buffers
    runs = [once() for _ in range(work["repeats"])]
    return {**figures(runs, work), "peak_gib": peak_gib(), "note": note()}


def load_model(work: Work) -> tuple[Any, float]:
    """The model and the seconds that loading it took, imports not counted."""
    if work["system"] != "transformers":
        import jetmoe  # noqa: F401
    from transformers import AutoModelForCausalLM

    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(work["path"], dtype=DTYPES[work["weights"]], use_safetensors=True)
    model.eval().requires_grad_(False)
    return model, time.perf_counter() - start


def bench_load(work: Work) -> dict[str, Any]:
    seconds = [load_model(work)[1] for _ in range(work["repeats"])]
    return {"load_s": round(statistics.median(seconds), 2), "peak_gib": peak_gib()}


def stock(model: Any, work: Work) -> tuple[Callable[[], Timed], Callable[[], str]]:
    """transformers' own JetMoE with its default cache: the model alone, without the overhead of `generate`."""
    from transformers import DynamicCache

    prompt = prompt_ids(model.config.vocab_size, work)

    def once() -> Timed:
        cache = DynamicCache(config=model.config)

        def read(ids: Tensor) -> Tensor:
            return model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]

        return timed(read, lambda token: read(torch.tensor([[token]])), prompt, work["new_tokens"])

    return once, lambda: ""


def ours(model: Any, work: Work) -> tuple[Callable[[], Timed], Callable[[], str]]:
    """The studio's decoder, as the engine drives it: recording, and compiled unless the row says eager."""
    from studio.backend.decoder import Decoder

    recorded = work["system"] != "jetmoe-studio-unrecorded"
    decoder = Decoder(model, model.config.max_position_embeddings, record=recorded)
    prompt = prompt_ids(model.config.vocab_size, work)
    started = time.perf_counter()
    compile_s = 0.0
    if work["system"] != "jetmoe-studio-eager":
        compile_s = compile_now(decoder, prompt.shape[1] + work["new_tokens"], started)

    def once() -> Timed:
        decoder.token_ids = []
        return timed(
            lambda ids: decoder.prefill(ids[0].tolist(), work["new_tokens"]), decoder.step, prompt, work["new_tokens"]
        )

    return once, lambda: f"compiled in {compile_s:.0f} s" if compile_s else decoder.compiled.text


def compile_now(decoder: Any, length: int, started: float) -> float:
    """Seconds until the compiled step for this length is there."""
    from studio.backend.decoder import cache_size

    decoder.compiled.enable()
    size = cache_size(length, decoder.context_size)
    decoder.compiled.request(size)
    while decoder.compiled.get(size) is None:
        if decoder.compiled.text.startswith("eager:"):
            raise RuntimeError(decoder.compiled.text)
        time.sleep(0.1)
    return time.perf_counter() - started


def bench_llama_cpp(work: Work) -> dict[str, Any]:
    """The dense twin in llama.cpp, with the 4-bit weights that the starter was made from."""
    from llama_cpp import Llama

    model = Llama(work["path"], n_ctx=2048, n_threads=work["threads"], n_threads_batch=work["threads"], verbose=False)
    prompt = prompt_ids(model.n_vocab(), work)

    def read(ids: list[int]) -> Tensor:
        model.eval(ids)
        return torch.from_numpy(model.scores[model.n_tokens - 1 : model.n_tokens])

    def once() -> Timed:
        model.reset()
        return timed(lambda ids: read(ids[0].tolist()), lambda token: read([token]), prompt, work["new_tokens"])

    once()
    runs = [once() for _ in range(work["repeats"])]
    return {**figures(runs, work), "peak_gib": peak_gib(), "note": "the dense twin"}


@torch.no_grad()
def timed(prefill: Callable[[Tensor], Tensor], step: Callable[[int], Tensor], prompt: Tensor, new_tokens: int) -> Timed:
    """Seconds of the prefill and of each greedy step."""
    start = time.perf_counter()
    logits = prefill(prompt)
    prefill_s = time.perf_counter() - start
    steps = []
    for _ in range(new_tokens):
        start = time.perf_counter()
        logits = step(int(logits.argmax()))
        steps.append(time.perf_counter() - start)
    return prefill_s, steps


def figures(runs: list[Timed], work: Work) -> dict[str, float]:
    prefill_s = statistics.median(prefill for prefill, _ in runs)
    decode_s = statistics.median(sum(steps) for _, steps in runs)
    first_step_s = statistics.median(steps[0] for _, steps in runs)
    return {
        "prefill_tok_s": round(work["prompt_tokens"] / prefill_s, 1),
        "decode_tok_s": round(work["new_tokens"] / decode_s, 2),
        "ttft_s": round(prefill_s + first_step_s, 3),
    }


def prompt_ids(vocab_size: int, work: Work) -> Tensor:
    """`[1, prompt_tokens]`, the same random tokens for every system."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(100, vocab_size, (1, work["prompt_tokens"]), generator=generator)


def peak_gib() -> float:
    """The largest resident memory of this process so far."""
    status = Path("/proc/self/status").read_text()
    kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return round(kib / 2**20, 2)


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
