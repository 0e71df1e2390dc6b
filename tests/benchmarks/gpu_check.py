"""`make gpu-check`: the GPU tests, then speed tables on the card, in one command, without a network and a model.

Writes tests/benchmarks/results/gpu-<card>-<date>.md. Runs on the system's Python, whose torch knows the card; what it
measures is `python -m studio bench generate --shape ...` and `bench train --shape ...`, and the Triton kernel beside
bitsandbytes' own.
"""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch

from studio.backend.bench import report as bench

RESULTS = Path(__file__).parent / "results"
# JetMoE-8B's expert projections, out x in.
PROJECTIONS = [(11264, 2048), (2048, 5632), (2048, 2048)]


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu-check needs a CUDA device and finds none.", file=sys.stderr)
        return 2
    card = torch.cuda.get_device_name()
    tests = subprocess.run([sys.executable, "-m", "pytest", "-m", "gpu", "tests"], check=False)
    sections = [
        f"# {card}, {datetime.date.today()}",
        f"GPU tests: {'passed' if tests.returncode == 0 else 'FAILED'} (torch {torch.__version__})",
        "## JetMoE-8B shape, one sequence, prompt of 2,048 tokens",
        bench.table(bench.generate("starter", ["bf16", "nf4"], 2048, 64, 2, 2, shape="jetmoe-8b")),
        "## JetMoE-8B shape, LoRA of rank 16 on all experts, batches of 1 x 2,048 tokens",
        bench.table(bench.train("starter", ["nf4"], 1, 2048, 16, 2, 2, shape="jetmoe-8b")),
        "## Two chosen experts times one token, µs",
        kernel_table(),
    ]
    name = re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
    path = RESULTS / f"gpu-{name}-{datetime.date.today()}.md"
    path.write_text("\n\n".join(sections))
    print(path.read_text())
    return tests.returncode


def kernel_table() -> str:
    """Of each projection the time of our Triton kernel and of a gather with bitsandbytes' product."""
    from triton.testing import do_bench

    from jetmoe.experts import experts
    from jetmoe.nf4 import tensor as nf4
    from jetmoe.nf4 import triton as nf4_triton

    lines = ["| out x in | Triton | gather and bitsandbytes |", "| --- | --- | --- |"]
    for rows, columns in PROJECTIONS:
        weight = torch.randn(8, rows, columns, dtype=torch.bfloat16, device="cuda")
        parts = nf4.quantize(weight).parts
        tokens = torch.randn(2, columns, dtype=torch.bfloat16, device="cuda")
        chosen = torch.tensor([1, 6], device="cuda")
        ours = do_bench(partial(nf4_triton.chosen_linear, tokens, chosen, parts))
        theirs = do_bench(partial(experts.gathered_nf4_linear, tokens, chosen, parts))
        lines.append(f"| {rows} x {columns} | {1000 * ours:.1f} | {1000 * theirs:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
