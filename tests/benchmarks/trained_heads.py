"""A head trained on the starter beside TF-IDF with logistic regression, on open data and the same rows.

    python -m tests.benchmarks.trained_heads headlines                          # 4,000 rows to train on, 1,000 to test
    python -m tests.benchmarks.trained_heads mails --train 1000 batch_size=8    # settings of the recipe
    python -m tests.benchmarks.trained_heads movies --test-on editorials        # another kind of text

The settings are those of recipes/starter/classify.yaml but for what is said here or on the command line. The minutes
are of all of it: loading, training, the evaluations on the way and the test.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studio.analysis.measures import majority_baseline, measure
from studio.backend.classification.tfidf import Tfidf
from studio.backend.classification.trained import TrainedClassifier
from studio.backend.classification.trained_predictions import TrainedHead
from studio.backend.data.labelled import Truth
from studio.backend.recipe import Recipe
from studio.backend.runs.events import TrainEvent
from studio.backend.runs.run import Run
from studio.backend.system.home import home
from studio.backend.training import run as train
from studio.errors import StudioError
from tests.benchmarks.open_data import DATA_SETS, Example, find, judged, shuffled

SETTINGS = [
    "eval_share=0.05",
    "batch_size=32",
    "max_steps=0",
    "epochs=2",
    "eval_steps=60",
    "save_steps=60",
    "max_length=64",
]


def main() -> None:
    options = _options()
    trained_on, tested_on = DATA_SETS[options.data], DATA_SETS[options.test_on or options.data]
    packages = [find(each, options.packages) for each in (trained_on, tested_on)]
    if not all(packages):
        raise StudioError("There is no data to train on; see above how to get it.")
    rows = shuffled(trained_on, packages[0])
    train_rows, rest = rows[: options.train], rows[options.train :]
    tests = {trained_on.name: rest[: options.test]}
    if tested_on is not trained_on:
        tests[tested_on.name] = shuffled(tested_on, packages[1])[: options.test]
    started = time.perf_counter()
    run, seconds = _trained(train_rows, [*SETTINGS, *options.settings])
    print(f"{len(train_rows):,} rows of {trained_on.name}; {' '.join([*SETTINGS, *options.settings])}\n")
    print("| tested on | rows | method | accuracy | macro F1 | ECE | minutes |\n|---|--:|---|--:|--:|--:|--:|")
    for name, examples in tests.items():
        for method, measures, ece, minutes in _tested(run, train_rows, examples, seconds):
            figures = f"{measures.accuracy:.3f} | {measures.macro_f1:.3f} | {ece} | {minutes}"
            print(f"| {name} | {len(examples):,} | {method} | {figures} |", flush=True)
    print(f"\nAll of it took {(time.perf_counter() - started) / 60:.1f} minutes; run {run.id[:8]}.")


def _trained(rows: Sequence[Example], settings: list[str]) -> tuple[Run, float]:
    """The run, and how many seconds it took."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.csv"
        with file.open("w", encoding="utf-8", newline="") as handle:
            csv.writer(handle).writerows([("text", "label"), *rows])
        started = time.perf_counter()
        run = train.start(Recipe.load("starter/classify", [f"data={file}", *settings]), show=_show)
        return run, time.perf_counter() - started


def _show(event: TrainEvent) -> None:
    if event.kind in ("eval", "warning") or (event.kind == "log" and not event.step % 20):
        print(f"step {event.step} {event.kind} {event.values}", file=sys.stderr, flush=True)


def _tested(run: Run, train_rows: Sequence[Example], rows: Sequence[Example], seconds: float) -> Any:
    """(method, measures, expected calibration error, minutes) of all of them."""
    texts, labels = [row.text for row in rows], [row.label for row in rows]
    train_texts, train_labels = [row.text for row in train_rows], [row.label for row in train_rows]
    started = time.perf_counter()
    predictions = [*TrainedHead(TrainedClassifier.load(run.id)).predict(texts)]
    minutes = (seconds + time.perf_counter() - started) / 60
    measures, ece = judged(predictions, labels, sorted(set(train_labels)))
    yield "head on the starter", measures, f"{ece:.3f}", f"{minutes:.1f}"
    started = time.perf_counter()
    names = sorted(set(train_labels))
    words = Tfidf.fit(Truth("single_label", names, train_texts, [names.index(label) for label in train_labels]))
    tfidf = measure(labels, [names[i] for i in words.logits(texts).argmax(axis=-1)], names)
    yield "TF-IDF + logistic regression", tfidf, "", f"{(time.perf_counter() - started) / 60:.2f}"
    yield "majority class", majority_baseline(train_labels, labels), "", ""


def _options() -> Any:
    parser = argparse.ArgumentParser(description="A head trained on open data, beside TF-IDF.")
    parser.add_argument("data", choices=DATA_SETS)
    parser.add_argument("settings", nargs="*", help="of the recipe, as key=value")
    parser.add_argument("--test-on", choices=DATA_SETS, help="rows of this set too")
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--packages", type=Path, default=home() / "benchmarks", help="where the packages are")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    try:
        main()
    except StudioError as error:
        sys.exit(str(error))
