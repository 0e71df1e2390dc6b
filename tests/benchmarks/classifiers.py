"""Classifiers on open data of this machine: without training, TF-IDF, the probe, and LoRA from the probe.

    python -m tests.benchmarks.classifiers                           # all sets of `installed_data.py`
    python -m tests.benchmarks.classifiers sections roles --lora     # LoRA too, which takes minutes for each set
    python -m tests.benchmarks.classifiers --rows 600 --zero-shot 64
    python -m tests.benchmarks.classifiers --per-class 8             # 8 rows of each label, and as many to test on
    python -m tests.benchmarks.classifiers --templates               # without training, by each template

A quarter of the rows is held out. The figures are macro-F1, or R² of a regression. The settings are those of
recipes/starter/classify_quick.yaml ("default", and its head alone) and classify.yaml ("LoRA"). The minutes are those of
the whole run of the default.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from studio.analysis import measures
from studio.backend.chat.engine import Engine
from studio.backend.classification import evaluation
from studio.backend.classification.label_prompt import DEFAULT_TEMPLATE, TEMPLATES
from studio.backend.classification.zero_shot import LabelTask, ZeroShot
from studio.backend.recipe import Recipe
from studio.backend.training import run as train
from studio.errors import StudioError
from tests.benchmarks.installed_data import SETS, InstalledSet, Row

HELD_OUT = 0.25
HEAD = ("set", "rows", "zero-shot", "chance", "TF-IDF", "head", "default", "LoRA head", "LoRA", "minutes")


def main() -> None:
    options = _options()
    if options.templates:
        _templates(options)
        return
    print(f"| {' | '.join(HEAD)} |\n|---|{'--:|' * (len(HEAD) - 1)}")
    for name in options.sets or SETS:
        print(f"| {' | '.join(_cells(SETS[name], options))} |", flush=True)


def _cells(data: InstalledSet, options: Any) -> Iterator[str]:
    rows = data.read()[: options.rows or None]
    share = HELD_OUT
    if options.per_class:
        rows, share = _few(data, options.per_class)
    yield from (data.title, f"{len(rows):,}", *_zero_shot(data, rows[: options.zero_shot]))
    with tempfile.TemporaryDirectory() as folder:
        file = _written(data, rows, Path(folder))
        started = time.perf_counter()
        found = _systems("starter/classify_quick", data, file, share)
        minutes = (time.perf_counter() - started) / 60
        lora = _systems("starter/classify", data, file, share) if options.lora else {}
    plain = found[evaluation.plain_name(data.problem)]
    yield from map(_figure, (plain, found[evaluation.ALONE], found[evaluation.OURS]))
    yield from (_figure(lora[name]) if lora else "" for name in (evaluation.ALONE, evaluation.OURS))
    yield f"{minutes:.1f}"


def _few(data: InstalledSet, per_class: int) -> tuple[list[Row], float]:
    """As many rows of each label to train on, or in all for a set without classes, and as many again to test on."""
    seen: Counter[str] = Counter()
    rows = []
    for row in data.read():
        label = row.label if data.problem == "single_label" else ""
        seen[label] += 1
        if seen[label] <= 2 * per_class:
            rows.append(row)
    return rows, 0.5


def _templates(options: Any) -> None:
    print(f"| set | rows | chance | {' | '.join(TEMPLATES)} |\n|---|--:|--:|{'--:|' * len(TEMPLATES)}")
    for data in (SETS[name] for name in options.sets or SETS):
        rows = data.read()[: options.zero_shot]
        found = [_zero_shot(data, rows, template) for template in TEMPLATES]
        print(f"| {data.title} | {len(rows)} | {found[0][1]} | {' | '.join(score for score, _ in found)} |", flush=True)


def _zero_shot(data: InstalledSet, rows: Sequence[Row], template: str = DEFAULT_TEMPLATE) -> tuple[str, str]:
    """Macro-F1 with the default settings, and that of a random label, which is about one in the number of labels."""
    labels = sorted({row.label for row in data.read()})
    if data.problem != "single_label" or not rows:
        return "", ""
    found = ZeroShot(_engine()).predict([row.text for row in rows], LabelTask(tuple(labels), template))
    figures = measures.measure([row.label for row in rows], [each.label for each in found], labels)
    return f"{figures.macro_f1:.2f}", f"{1 / len(labels):.2f}"


@cache
def _engine() -> Engine:
    engine = Engine(compile_steps=False)
    engine.load("starter")
    return engine


def _written(data: InstalledSet, rows: Sequence[Row], folder: Path) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"text": row.text, data.kind: row.label}) for row in rows))
    return file


def _systems(recipe: str, data: InstalledSet, file: Path, share: float) -> dict[str, dict[str, Any]]:
    """The systems of the run's report by name: the classifier, its head alone, and TF-IDF."""
    columns = f"columns={{text: text, label: {data.kind}}}"
    settings = [f"data={file}", columns, f"problem={data.problem}", f"eval_share={share}"]
    report = evaluation.of_run(train.start(Recipe.load(recipe, settings)))
    assert report is not None
    return {system["name"]: system for system in report["systems"]}


def _figure(system: dict[str, Any]) -> str:
    return f"{system.get('macro_f1', system.get('r2')):.3f}"


def _options() -> Any:
    parser = argparse.ArgumentParser(description="Classifiers on open data of this machine.")
    parser.add_argument("sets", nargs="*", help=f"of {', '.join(SETS)}; all if none is named")
    parser.add_argument("--rows", type=int, default=0, help="of each set; all if 0")
    parser.add_argument("--per-class", type=int, default=0, help="rows of each label to train on, instead of --rows")
    parser.add_argument("--zero-shot", type=int, default=64, help="rows that are classified without training")
    parser.add_argument("--templates", action="store_true", help="compare the templates without training")
    parser.add_argument("--lora", action="store_true", help="train LoRA from the probe as well")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except StudioError as error:
        sys.exit(str(error))
