"""Seconds and memory of reading large files: `python -m tests.benchmarks.reading`.

    python -m tests.benchmarks.reading                           # 20,000 and 200,000 rows of about 500 bytes
    python -m tests.benchmarks.reading --rows 2000000 --folder /big/disk
    python -m tests.benchmarks.reading --task classify

The preview reads the first rows, and the dry run reads all of them and tokenizes what 60 steps need. A dry run is
repeated, because the rows of the first one are kept on disk. Each measurement is a process of its own. Memory is the
peak of its resident memory above that of the same work on ten rows, and includes the pages of the file that is mapped.
The tokenizer is that of a toy, with a token for each byte.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from studio.backend.data.preview import preview
from studio.backend.recipe import Recipe
from studio.backend.training.prepare import prepare_data
from tests.builders.toy_folder import toy_folder

WORDS = ("whale", "ship", "sea", "captain", "sails", "dark", "wave", "harbour", "storm", "light", "house", "keeper")
STEPS = 60
ROW_WORDS = 80
"""Words of a row, which make about 500 bytes."""


def main() -> None:
    options = _options()
    if options.measure:
        print(json.dumps(measured(options.measure, options.file, options.model, options.task)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        _table(Path(folder), options.rows, options.task)


def _table(folder: Path, counts: list[int], task: str) -> None:
    model = toy_folder(folder / "toy")
    base = {
        step: _in_process(step, written(folder / "few.jsonl", 10, task), model, task, folder)["peak_gib"]
        for step in ("preview", "dry run")
    }
    print("Seconds, and CPU seconds in brackets:\n")
    print("| rows | MB | preview | GiB | first dry run | GiB | again | GiB |\n|--:|--:|--:|--:|--:|--:|--:|--:|")
    for count in counts:
        file = written(folder / "rows.jsonl", count, task)
        cells = [f"{count:,}", f"{file.stat().st_size / 1e6:,.0f}"]
        for step in ("preview", "dry run", "dry run"):
            found = _in_process(step, file, model, task, folder)
            cells += [f"{found['seconds']:.1f} ({found['cpu']:.1f})", f"{found['peak_gib'] - base[step]:.2f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def written(file: Path, count: int, task: str) -> Path:
    """Write a file of random rows, most of which are different."""
    rng = random.Random(0)
    with file.open("w") as target:
        for i in range(count):
            words = rng.choices(WORDS, k=ROW_WORDS)
            prompt, answer = " ".join(words[:20]), " ".join(words[20:])
            row = {"text": f"{prompt} {answer}", "label": WORDS[i % 8]} if task == "classify" else None
            target.write(json.dumps(row or {"prompt": prompt, "completion": answer}) + "\n")
    return file


def measured(step: str, file: Path, model: Path, task: str) -> dict[str, float]:
    settings: dict[str, Any] = {"model": str(model), "data": str(file), "max_steps": STEPS, "batch_size": 4}
    recipe = Recipe.from_settings(settings | {"task": task, "packing": False})
    started, used = time.perf_counter(), time.process_time()
    if step == "preview":
        preview(recipe)
    else:
        prepare_data(recipe, AutoTokenizer.from_pretrained(model))
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    return {"seconds": seconds, "cpu": cpu, "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def _in_process(step: str, file: Path, model: Path, task: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.reading", "--measure", step, "--task", task]
    command += ["--file", str(file), "--model", str(model)]
    done = subprocess.run(command, env=os.environ | {"STUDIO_HOME": str(folder / "home")}, stdout=-1, check=True)
    return json.loads(done.stdout)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--task", choices=("chat", "classify"), default="chat")
    parser.add_argument("--folder", type=Path, help="where the files are written; the default is the temporary folder")
    parser.add_argument("--measure", choices=("preview", "dry run"), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
