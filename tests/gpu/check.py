"""`make gpu-check`: what only a CUDA device can show, in ten minutes, without a network and without a model.

    python -m tests.gpu.check [--out FOLDER] [--wheels FOLDER]
    python -m tests.gpu.check --toy             # tries the steps on a CPU

Needs torch, transformers, peft and accelerate, and bitsandbytes, which is installed from the folder of wheels if it is
missing. Every step is a process, and its results are written while it runs, so that an error or a hanging kernel costs
the rest of one step.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tests/benchmarks/results"
MOST_S = 570


class Step(NamedTuple):
    title: str
    function: str
    """Module below `tests.gpu` and name."""
    seconds: int
    """Limit."""


# What is worth most comes first, and what compiles large graphs comes last. Their limits add up to `MOST_S`.
STEPS = (
    Step("Versions and the card", "speed.facts", 50),
    Step("Toys on the card and on the CPU", "correctness.toys", 110),
    Step("Waits, idle experts, Triton", "correctness.details", 40),
    Step("Products with experts", "speed.kernels", 50),
    Step("Training, 24 layers", "model_speed.training", 60),
    Step("Prompts, 24 layers", "model_speed.prompts", 50),
    Step("Attention", "model_speed.attention", 30),
    Step("Decoding, four layers", "model_speed.four_layers", 70),
    Step("Decoding, 24 layers", "model_speed.decoding", 80),
    Step("Several cards", "model_speed.several", 30),
)


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    if options.step:
        run_step(options.step, "cpu" if options.toy else "cuda")
        return 0
    if not options.toy and not torch.cuda.is_available():
        print("gpu-check needs a CUDA device and finds none; --toy tries it on the CPU.", file=sys.stderr)
        return 2
    card = "a toy on the CPU" if options.toy else torch.cuda.get_device_name()
    name = re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
    file = options.out / f"gpu-{name}-{datetime.date.today()}.md"
    options.out.mkdir(parents=True, exist_ok=True)
    file.write_text(f"# {card}, {datetime.date.today()}\n")
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | installed(options.wheels, Path(folder))
        failed = run_all(STEPS, file, environment, options.toy)
    print(file.read_text())
    print(f"Written to {file}.", file=sys.stderr)
    return 1 if failed else 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the result")
    parser.add_argument("--wheels", type=Path, default=ROOT / "wheels", help="folder with a wheel of bitsandbytes")
    parser.add_argument("--toy", action="store_true", help="run at the size of a toy on the CPU")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def installed(wheels: Path, folder: Path) -> dict[str, str]:
    """Install bitsandbytes into a folder if it is missing; return the changes of the environment."""
    files = sorted(wheels.glob("*.whl")) if wheels.is_dir() else []
    if find_spec("bitsandbytes") or not files:
        return {}
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(folder)]
    subprocess.run([*pip, *map(str, files)], check=False)
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


def run_all(steps: tuple[Step, ...], file: Path, environment: dict[str, str], toy: bool) -> list[str]:
    """Run the steps one after the other; return the titles of those that failed."""
    failed, until = [], time.monotonic() + MOST_S * (10 if toy else 1)
    for step in steps:
        with file.open("a") as report:
            report.write(f"\n## {step.title}\n")
        # The first step also reads torch from the disk. A toy may take its time, on whatever machine it is.
        limit = min(step.seconds * (10 if toy else 1), until - time.monotonic())
        problem = "left out: ten minutes are over" if limit < 5 else _run(step, file, environment, toy, limit)
        if problem:
            failed.append(step.title)
            with file.open("a") as report:
                report.write(f"\n{problem}\n")
    return failed


def _run(step: Step, file: Path, environment: dict[str, str], toy: bool, seconds: float) -> str:
    """Run a step; return what went wrong, with the errors of all rows, or ""."""
    start = time.monotonic()
    with file.open("a") as report, tempfile.TemporaryFile("w+") as errors:
        options = {"cwd": ROOT, "env": environment, "stdout": report, "stderr": errors}
        try:
            done = subprocess.run(command_of(step, toy), timeout=seconds, check=False, **options)
            ending = f"exit code {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired:
            ending = f"stopped after {seconds:.0f} s"
        report.write(f"\n{time.monotonic() - start:.0f} s\n")
        errors.seek(0)
        said = errors.read()
    if not ending and "Traceback" not in said:
        return ""
    return f"{ending or 'errors'}:\n\n```\n{said[-20000:]}\n```"


def command_of(step: Step, toy: bool) -> list[str]:
    return [sys.executable, "-m", "tests.gpu.check", "--step", step.function, *["--toy"][: int(toy)]]


def run_step(name: str, device: str) -> None:
    from importlib import import_module

    from tests.gpu.place import Place

    if device == "cpu":
        import pytest

        from tests.builders.gpu_paths import take_gpu_paths

        take_gpu_paths(pytest.MonkeyPatch())
    else:
        torch.backends.cuda.enable_cudnn_sdp(False)  # as the studio does when it loads a model
    module, _, function = name.partition(".")
    step: Callable[[Place], None] = getattr(import_module(f"tests.gpu.{module}"), function)
    print(f"\n{step.__doc__}", flush=True)
    step(Place(device))


if __name__ == "__main__":
    sys.exit(main())
