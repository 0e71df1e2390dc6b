"""Evaluate a classified file whose rows have true labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from studio.backend.classification.evaluation import Report, evaluate
from studio.backend.classification.prediction import LabelledRow
from studio.backend.data.formats.labelled import labels as names_of
from studio.backend.data.labelled import Target, Truth, target_of
from studio.backend.data.rows import BadRow, Problem
from studio.errors import StudioError

MOST_ROWS = 20_000
"""Maximum rows of a file that are evaluated."""


class FileTest:
    """Collect the classified rows that have a true label."""

    def __init__(self, problem: str, names: Sequence[str], column: str) -> None:
        self.problem, self.names, self.column = problem, tuple(names), column
        self.texts: list[str] = []
        self.targets: list[Target] = []
        self.scores: list[list[float]] = []
        self.unknown: Counter[str] = Counter()
        self.bad: list[BadRow] = []
        self.more = 0

    def add(self, row: LabelledRow) -> None:
        if row.prediction is None:
            return
        full = len(self.texts) == MOST_ROWS
        try:
            target = target_of(names_of({"label": row.cells.get(self.column)}), self.problem, self.names, self.column)
        except Problem as problem:
            if not full:
                self.bad.append(BadRow(row.line, self.column, problem.reason, problem.remedy))
            return
        if isinstance(target, str):
            self.unknown[target] += 1
            return
        if full:
            self.more += 1
            return
        self.texts.append(row.prediction.text)
        self.targets.append(target)
        self.scores.append([row.prediction.scores[name] for name in self.names])

    def report(self, name: str) -> Report:
        """Return the evaluation report.

        Raises:
            StudioError: no row has a true label, or none is a label of the classifier.
        """
        if not self.texts:
            raise StudioError(self._nothing())
        rows = f"{len(self.texts):,} row{'s' if len(self.texts) > 1 else ''}"
        truth = Truth(self.problem, self.names, self.texts, self.targets)
        report = evaluate(truth, np.asarray(self.scores), f"{rows} of {name}")
        report["temperature"] = None  # a classifier's temperature is fitted on the held-out rows of its training
        report["notices"] = [*self._left_out(), *report["notices"]]
        return report

    def _nothing(self) -> str:
        if self.unknown:
            label, count = self.unknown.most_common(1)[0]
            return (
                f"No row of {self.column!r} has a label of the classifier; {count:,} have {label!r}. Its labels are "
                f"{', '.join(map(repr, self.names[:10]))}. Choose another column, or correct the labels."
            )
        reason = f"; line {self.bad[0].line} {self.bad[0].reason}" if self.bad else ""
        return f"No row has a true label in {self.column!r}{reason}. Choose the column of the true labels."

    def _left_out(self) -> list[str]:
        notices = []
        if self.unknown:
            label, count = self.unknown.most_common(1)[0]
            notices.append(
                f"Rows with a label that the classifier does not have: {self.unknown.total():,}, most often {label!r} "
                f"({count:,}). They are left out."
            )
        if self.bad:
            notices.append(f"Rows without a readable label: {len(self.bad):,}. The first: {self.bad[0]}")
        if self.more:
            notices.append(f"Only the first {MOST_ROWS:,} labelled rows are evaluated; {self.more:,} are left out.")
        return notices
