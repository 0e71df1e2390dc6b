"""Classification without training, on open data, beside chance and the majority class.

    python -m tests.benchmarks.zero_shot                    # 500 rows of each set, the starter
    python -m tests.benchmarks.zero_shot --rows 20 --model FOLDER --packages DIR --templates sentiment

The sets are those of `open_data.py`: tweets and mails.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from studio.analysis.measures import Measures, majority_baseline, measure
from studio.backend.chat.engine import Engine
from studio.backend.classification.zero_shot import LabelTask, ZeroShot
from studio.backend.system.home import home
from studio.errors import StudioError
from tests.benchmarks.open_data import DATA_SETS, SEED, DataSet, Example, find, judged, shuffled

SETS = ("tweets", "mails")


def main() -> None:
    options = _options()
    found = [(DATA_SETS[name], package) for name in SETS if (package := find(DATA_SETS[name], options.packages))]
    if not found:
        raise StudioError("There is no data to classify; see above how to get it.")
    engine = Engine()
    engine.load(options.model, precision=options.precision)
    print(f"{engine.status().text} {options.rows} rows of each set, seed {SEED}.\n")
    print("| set | classes | method | accuracy | macro F1 | ECE | rows/s |\n|---|--:|---|--:|--:|--:|--:|")
    for data, package in found:
        examples = shuffled(data, package)
        for line in _lines(data, examples[: options.rows], examples[options.rows :], engine, options.templates):
            print(f"| {data.name} | {len(data.labels)} | {line} |", flush=True)


def _lines(
    data: DataSet, rows: list[Example], rest: list[Example], engine: Engine, templates: list[str]
) -> Iterator[str]:
    true = [row.label for row in rows]
    guesses = np.random.default_rng(SEED).choice(data.labels, len(rows)).tolist()
    yield _line("chance: a random label", measure(true, guesses, data.labels))
    yield _line("majority of the other rows", majority_baseline([row.label for row in rest], true))
    for template in templates or [data.template]:
        for calibrate in (False, True):
            started = time.perf_counter()
            task = LabelTask(data.labels, template, calibrate)
            predictions = list(ZeroShot(engine).predict([row.text for row in rows], task))
            speed = len(rows) / (time.perf_counter() - started)
            measures, ece = judged(predictions, true, data.labels)
            method = f"zero-shot, {template!r}" + (", calibrated" if calibrate else "")
            yield _line(method, measures, f"{ece:.3f}", f"{speed:.2f}")


def _line(method: str, measures: Measures, ece: str = "", speed: str = "") -> str:
    return f"{method} | {measures.accuracy:.3f} | {measures.macro_f1:.3f} | {ece} | {speed}"


def _options() -> Any:
    parser = argparse.ArgumentParser(description="Zero-shot classification on open data.")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--packages", type=Path, default=home() / "benchmarks", help="where the packages are")
    parser.add_argument("--templates", nargs="*", default=[], help="else the one that fits each set")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except StudioError as error:
        sys.exit(str(error))
