"""Print the memory of two training steps of the starter on a CPU, for batches of several sizes, beside the forecast.

    python -m tests.benchmarks.step_memory          # some minutes; needs 6 GiB and the starter

The figures of `studio/backend/models/needs.py` are from here. Each row is a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROWS = ((1, "auto", False), (4, "auto", False), (2, "fp32", False), (4, "auto", True))
LENGTH = 512
GIB = 2**30


def main() -> None:
    print("| precision | checkpointing | tokens | saved GiB | peak GiB | forecast GiB |\n|---|---|---|---|---|---|")
    for batch_size, precision, checkpointing in ROWS:
        command = ["-m", "tests.benchmarks.step_memory", str(batch_size), precision, str(int(checkpointing))]
        subprocess.run([sys.executable, *command], check=True)


def measure(batch_size: int, precision: str, checkpointing: bool) -> None:
    import torch

    from studio.backend.recipe import Recipe
    from studio.backend.training import cpu_memory
    from studio.backend.training.prepare import prepare

    settings = {"precision": precision, "gradient_checkpointing": checkpointing, "batch_size": batch_size}
    ready = prepare(Recipe(data="devils-dictionary", max_length=LENGTH, **settings))
    saved = cpu_memory._saved_by_batch(ready)
    trained = [each for each in ready.model.parameters() if each.requires_grad]
    forecast, _ = cpu_memory.needed_and_free(ready, sum(each.numel() for each in trained), saved)
    optimizer = torch.optim.AdamW(trained)
    for step in range(2):
        batch = ready.collate(ready.data.train[step * batch_size : (step + 1) * batch_size])
        ready.loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    figures = f"{saved / GIB:.2f} | {_peak_gib():.1f} | {forecast / GIB:.1f}"
    print(
        f"| {ready.precision} | {'yes' if checkpointing else 'no'} | {batch_size * LENGTH:,} | {figures} |", flush=True
    )


def _peak_gib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(int(sys.argv[1]), sys.argv[2], sys.argv[3] == "1")
    else:
        main()
