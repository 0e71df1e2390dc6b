"""`make gpu-check`: the GPU tests, then a table of decoding on the card, in one command and without a network.

Writes tests/benchmarks/results/gpu-<card>-<date>.md. Random weights of the starter's shape: no model is needed.
"""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import StaticCache

RESULTS = Path(__file__).parent / "results"
SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "kv_channels": 64,
    "num_experts_per_tok": 3,
    "num_local_experts": 12,
    "intermediate_size": 512,
}


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu-check needs a CUDA device and finds none.", file=sys.stderr)
        return 2
    tests = subprocess.run([sys.executable, "-m", "pytest", "-m", "gpu", "tests"], check=False)
    card = torch.cuda.get_device_name()
    lines = [
        f"# {card}, {datetime.date.today()}",
        "",
        f"torch {torch.__version__}, starter shape, bf16, one sequence",
        "",
    ]
    lines += ["| decoding | tok/s |", "| --- | --- |"]
    lines += [f"| {name} | {speed:.1f} |" for name, speed in speeds().items()]
    lines += ["", f"GPU tests: {'passed' if tests.returncode == 0 else 'FAILED'}", ""]
    name = re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
    path = RESULTS / f"gpu-{name}-{datetime.date.today()}.md"
    path.write_text("\n".join(lines))
    print(path.read_text())
    return tests.returncode


def speeds(steps: int = 100) -> dict[str, float]:
    from jetmoe import JetMoeConfig, JetMoeForCausalLM
    from jetmoe.decode import compiled_step, step

    with torch.device("cuda"):
        model = JetMoeForCausalLM(JetMoeConfig(**SHAPE)).to(torch.bfloat16).eval().requires_grad_(False)
    compiled = compiled_step(model)
    runs = {"eager": lambda *args: step(model, *args), "compiled": compiled}
    return {name: _tokens_per_second(model, run, steps) for name, run in runs.items()}


@torch.no_grad()
def _tokens_per_second(model, run, steps: int) -> float:
    cache = StaticCache(config=model.config, max_cache_len=1024)
    token = torch.zeros(1, 1, dtype=torch.int64, device="cuda")
    model(token.repeat(1, 512), past_key_values=cache)
    for i in range(5):
        run(token, torch.full_like(token, 512 + i), cache)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for i in range(steps):
        run(token, torch.full_like(token, 517 + i), cache)
    torch.cuda.synchronize()
    return steps / (time.perf_counter() - start)


if __name__ == "__main__":
    sys.exit(main())
