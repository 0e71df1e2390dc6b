"""Classification without training: labels that share one pass over the prompt, beside a pass of its own for each.

    python -m tests.benchmarks.shared_prompt                # 32 dictionary entries, four labels, the starter

Both give the same scores (see `test_zero_shot.py`). Each way warms up once; then the median of three.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from studio.backend.bench.classifying import texts_of
from studio.backend.chat.engine import Engine
from studio.backend.classification.zero_shot import LabelTask, ZeroShot
from tests.studio.backend.classification.test_zero_shot import LABELS, one_by_one

TEXTS = 32
REPEATS = 3


def main() -> None:
    engine = Engine()
    engine.load("starter")
    texts, classifier = texts_of(TEXTS), ZeroShot(engine)
    shared = _seconds(lambda: [*classifier.predict(texts, LabelTask(LABELS))])
    alone = _seconds(lambda: [one_by_one(engine, text=text) for text in texts])
    print(f"{TEXTS} texts, {len(LABELS)} labels: {shared:.1f} s sharing the prompt, {alone:.1f} s one by one, ", end="")
    print(f"{alone / shared:.1f} times as fast")


def _seconds(work: Callable[[], object]) -> float:
    took = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        work()
        took.append(time.perf_counter() - started)
    return statistics.median(took[1:])


if __name__ == "__main__":
    main()
