"""Run one system of a benchmark in a separate process and print one JSON line. Started by `report.py`.

Nothing at the top of this file may import `jetmoe`: it would shadow transformers' own JetMoE.
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

from studio.backend.bench import peers, shapes, training
from studio.backend.bench.peers import Timed
from studio.backend.models import starter

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "nf4": torch.bfloat16}
Work = dict[str, Any]


def main(work: Work) -> dict[str, Any]:
    torch.set_num_threads(work["threads"])
    if work["bench"] == "load":
        return bench_load(work)
    if work["bench"] == "train":
        return {**training.train(load_model(work)[0], work, synchronize), "peak_gib": peak_gib()}
    if work["bench"] == "classify":
        from studio.backend.bench import classifying

        speeds = classifying.classify(work, DTYPES[work["weights"]], device(), synchronize)
        return {**speeds, "peak_gib": peak_gib()}
    if work["system"] in peers.PEERS:
        return bench_peer(work)
    model, _ = load_model(work)
    once, note = {"transformers": stock}.get(work["system"], ours)(model, work)
    speeds, peak = speeds_of(once, work), peak_gib()
    floor_s = bytes_per_token(model.config, work) / copy_bandwidth()
    return {**speeds, "bandwidth": round(floor_s * speeds["decode_tok_s"], 2), "peak_gib": peak, "note": note()}


def load_model(work: Work) -> tuple[Any, float]:
    """Return the model and its loading time in seconds, without imports."""
    make = stock_model if work["system"] == "transformers" else our_model
    model, seconds = make(work, DTYPES[work["weights"]], work["weights"] == "nf4")
    model.eval().requires_grad_(False)
    return model, seconds


def stock_model(work: Work, dtype: torch.dtype, four_bit: bool) -> tuple[Any, float]:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    start = time.perf_counter()
    if "shape" in work:
        return shapes.stock(work["shape"], four_bit, dtype, device()), time.perf_counter() - start
    options: dict[str, Any] = {}
    if four_bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    model = AutoModelForCausalLM.from_pretrained(
        work["path"], dtype=dtype, use_safetensors=True, device_map=device(), **options
    )
    return model, time.perf_counter() - start


def our_model(work: Work, dtype: torch.dtype, four_bit: bool) -> tuple[Any, float]:
    from transformers import AutoModelForCausalLM

    from jetmoe.loading.load import load

    quantization: Any = "nf4" if four_bit else None
    start = time.perf_counter()
    if "shape" in work:
        return shapes.ours(work["shape"], quantization, dtype, device()), time.perf_counter() - start
    model = load(AutoModelForCausalLM, work["path"], quantization=quantization, dtype=dtype, device=device())
    return model, time.perf_counter() - start


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def bytes_per_token(config: Any, work: Work) -> float:
    """Return the minimum number of bytes to read from memory per decoded token.

    Counted are the weights of the chosen experts, all other weights once, and the keys and values in the middle of the
    answer.
    """
    D, L, K = config.hidden_size, config.num_hidden_layers, config.num_experts_per_tok
    # transformers' OlmoeConfig has no head_dim.
    head_dim = getattr(config, "head_dim", None) or D // config.num_attention_heads
    kv = config.num_key_value_heads * head_dim
    plain = 4 if work["weights"] == "fp32" else 2
    small: float = 0.5 + 4 / 64 if work["weights"] == "nf4" else plain
    experts = small if work["system"] != "transformers" else plain  # stock 4-bit skips the experts
    kinds = 2 if config.model_type == "jetmoe" else 1
    queries = experts * K * kv if kinds == 2 else small * config.num_attention_heads * head_dim
    per_layer = 2 * D * queries + experts * K * 3 * D * config.intermediate_size + small * 2 * kv * D
    per_layer += plain * kinds * config.num_local_experts * D
    context = work["prompt_tokens"] + work["new_tokens"] / 2
    return L * (per_layer + plain * 2 * kv * context) + plain * config.vocab_size * D


def copy_bandwidth() -> float:
    """Return the bandwidth of a large copy in bytes per second, reads plus writes."""
    source = torch.ones(2**28, dtype=torch.uint8, device=device())
    target = torch.empty_like(source)
    seconds = []
    for _ in range(9):
        start = time.perf_counter()
        target.copy_(source)
        synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / statistics.median(seconds)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def bench_load(work: Work) -> dict[str, Any]:
    seconds = [load_model(work)[1] for _ in range(work["repeats"])]
    return {"load_s": round(statistics.median(seconds), 2), "peak_gib": peak_gib()}


def stock(model: Any, work: Work) -> tuple[Callable[[], Timed], Callable[[], str]]:
    """Prepare transformers' own JetMoE with its default cache, without the overhead of `generate`."""
    from transformers import DynamicCache

    prompt = prompt_ids(model.config.vocab_size, work)

    def once() -> Timed:
        cache = DynamicCache(config=model.config)

        def read(ids: Tensor) -> Tensor:
            return model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]

        return timed(read, lambda token: read(torch.tensor([[token]], device=device())), prompt, work["new_tokens"])

    return once, lambda: ""


def ours(model: Any, work: Work) -> tuple[Callable[[], Timed], Callable[[], str]]:
    """Prepare the studio's decoder as the engine uses it.

    The system's name may ask for no recording, eager steps, or several answers at the same time.
    """
    from studio.backend.bench import conversations
    from studio.backend.chat.decoder import Decoder
    from studio.backend.chat.steps import Steps

    recorded = work["system"] != "jetmoe-studio-unrecorded"
    decoder = Decoder(model, model.config.max_position_embeddings, record=recorded)
    prompt = prompt_ids(model.config.vocab_size, work)
    if work["system"] == "jetmoe-studio-eager":
        decoder.steps = Steps(model)
    note = compile_now(decoder, prompt.shape[1] + work["new_tokens"])
    if count := conversations.COUNTS.get(work["system"]):
        prompts = [prompt_ids(model.config.vocab_size, work, seed)[0].tolist() for seed in range(count)]
        return conversations.several(decoder, prompts, work["new_tokens"]), lambda: note

    def once() -> Timed:
        decoder.token_ids = []
        return timed(
            lambda ids: decoder.prefill(ids[0].tolist(), work["new_tokens"]), decoder.step, prompt, work["new_tokens"]
        )

    return once, lambda: note


def compile_now(decoder: Any, length: int) -> str:
    """Return a note about the steps for this length, once they are compiled if they will be."""
    from studio.backend.chat.cache import cache_size
    from studio.backend.chat.compiled_steps import CompiledSteps

    steps, started = decoder.steps, time.perf_counter()
    if not isinstance(steps, CompiledSteps):
        return steps.text
    steps.enable()
    size = cache_size(length, decoder.context_size)
    steps.request(size)
    while size not in steps.ready:
        if steps.text.startswith("eager:"):
            raise RuntimeError(steps.text)
        time.sleep(0.1)
    return f"compiled in {time.perf_counter() - started:.0f} s"


def bench_peer(work: Work) -> dict[str, Any]:
    _, prepare = peers.PEERS[work["system"]]
    vocab_size = json.loads((starter.path() / "config.json").read_text())["vocab_size"]  # as the dense twin's
    once = prepare(work["path"], prompt_ids(vocab_size, work)[0].tolist(), work["new_tokens"], work["threads"])
    return {**speeds_of(once, work), "peak_gib": peak_gib(), "note": "the dense twin"}


@torch.no_grad()
def timed(prefill: Callable[[Tensor], Tensor], step: Callable[[int], Tensor], prompt: Tensor, new_tokens: int) -> Timed:
    """Return the seconds of the prefill and of each greedy step."""
    start = time.perf_counter()
    logits = prefill(prompt)
    synchronize()
    prefill_s = time.perf_counter() - start
    steps = []
    for _ in range(new_tokens):
        start = time.perf_counter()
        logits = step(int(logits.argmax()))
        steps.append(time.perf_counter() - start)
    return prefill_s, steps


def speeds_of(once: Callable[[], Timed], work: Work) -> dict[str, float]:
    """Return the median figures, and the decoding speed of the first run, which allocates, captures or compiles."""
    first = once()
    runs = [once() for _ in range(work["repeats"])]
    return {**figures(runs, work), "first_tok_s": figures([first], work)["decode_tok_s"]}


def figures(runs: list[Timed], work: Work) -> dict[str, float]:
    prefill_s = statistics.median(prefill for prefill, _ in runs)
    decode_s = statistics.median(sum(steps) for _, steps in runs)
    first_step_s = statistics.median(steps[0] for _, steps in runs)
    return {
        "prefill_tok_s": round(work["prompt_tokens"] / prefill_s, 1),
        "decode_tok_s": round(work["new_tokens"] / decode_s, 2),
        "ttft_s": round(prefill_s + first_step_s, 3),
    }


def prompt_ids(vocab_size: int, work: Work, seed: int = 0) -> Tensor:
    """Return `[1, prompt_tokens]`, the same random tokens for every system."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(100, vocab_size, (1, work["prompt_tokens"]), generator=generator).to(device())


def peak_gib() -> float:
    """Return the peak memory of this process in GiB: allocated GPU memory if there is a GPU, else resident memory."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**30, 2)
    status = Path("/proc/self/status").read_text()
    kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return round(kib / 2**20, 2)


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
