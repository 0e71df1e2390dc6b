"""Classify a file of texts row by row into another file, in constant memory.

    predict = lambda texts: classifier.predict(texts, task, cancel=cancel)
    report = predict_file(Path("mails.csv"), predict, Path("labelled.csv"), task.labels, cancel=cancel)
    report.rows, report.bad_rows, report.notices

The new file has all columns of the old one, the label, its confidence and the confidence of every label. A row without
a readable text keeps its place, with an empty label.
"""

from __future__ import annotations

import csv
import json
import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from studio.backend.classification.prediction import LabelledRow, Prediction
from studio.backend.data.formats import needed_text
from studio.backend.data.formats.labelled import FORMAT as LABELLED
from studio.backend.data.rows import BadRow, Limits, Problem, Row, Rows
from studio.backend.system.progress import Progress
from studio.errors import StudioError

Predict = Callable[[list[str]], Iterable[Prediction]]
"""Yields one prediction per text, in order; fewer if cancelled."""
BATCH = 64
SHOWN_BAD_ROWS = 20
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters that make a spreadsheet read a cell as a formula."""
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass
class FileReport:
    out: Path | None
    total: int
    """Rows of the input file."""
    text_column: str
    rows: int = 0
    """Finished rows, including bad ones."""
    bad: int = 0
    bad_rows: list[BadRow] = field(default_factory=list)
    """The first SHOWN_BAD_ROWS bad rows."""
    counts: Counter[str] = field(default_factory=Counter)
    """Rows per predicted label."""
    cut: int = 0
    """Truncated texts."""
    first_cut: str = ""
    cancelled: bool = False
    notices: list[str] = field(default_factory=list)

    @property
    def finished(self) -> str:
        """Progress, as in "120 of 500 rows are finished in labelled.csv."."""
        where = f" in {self.out.name}" if self.out is not None else ""
        return f"{self.rows:,} of {self.total:,} rows are finished{where}."

    def count(self, row: LabelledRow) -> None:
        self.rows += 1
        if row.problem is not None:
            self.bad += 1
            if len(self.bad_rows) < SHOWN_BAD_ROWS:
                self.bad_rows.append(row.problem)
        if row.prediction is not None:
            self.counts[row.prediction.label] += 1
            if row.prediction.cut:
                self.cut += 1
                self.first_cut = self.first_cut or f"line {row.line}: {row.prediction.cut}"
            self.note(notice for notice in row.prediction.notices if notice != row.prediction.cut)

    def note(self, notices: Iterable[str]) -> None:
        self.notices += [notice for notice in notices if notice not in self.notices]


def predict_file(
    path: Path,
    predict: Predict,
    out: Path | None,
    labels: Sequence[str],
    text_column: str = "",
    cancel: threading.Event | None = None,
    progress: Progress = lambda fraction, text: None,
    each: Callable[[LabelledRow], None] = lambda row: None,
    limits: Limits | None = None,
    encoding: str = "auto",
) -> FileReport:
    """Classify every row of a file. Setting `cancel` stops early; finished rows are kept, also after a failure.

    Args:
        out: a new .csv or .jsonl file; None writes no file.
        text_column: the column of the texts; if empty, it is detected by its name.
        each: called with every finished row.
        encoding: one of `encodings.NAMES`, or auto to detect it.

    Raises:
        StudioError: a file can't be read or written, no text column is found, or the prediction failed. The message
            contains the number of finished rows.
    """
    cancel = cancel or threading.Event()
    survey = _survey(Rows(path, limits, encoding), text_column)
    report = FileReport(out, survey.rows, survey.text_column)
    columns, notices = _new_columns(survey.columns, labels)
    report.note(notices)
    writer = _writer(out, survey.columns, columns)
    try:
        with writer as write:
            rows = Rows(path, limits, encoding)
            for row in _labelled(iter(rows), survey.text_column, predict, cancel):
                write(row)
                each(row)
                report.count(row)
                progress(report.rows / max(survey.rows, 1), f"{report.rows:,} of {survey.rows:,} rows")
    except Exception as error:
        kept = _keep_finished(report)
        if isinstance(error, StudioError):
            raise StudioError(f"{error}{kept}") from error
        if isinstance(error, OSError):
            raise StudioError(f"{out} can't be written ({error.strerror}). Free some disk space.{kept}") from error
        error.add_note(report.finished)
        raise
    report.cancelled = report.rows < survey.rows
    report.note(rows.notices)
    if isinstance(writer, _CsvWriter):
        report.note(writer.notices())
    if report.cut:
        report.note([f"Texts that were too long and were cut: {report.cut:,}. The first is on {report.first_cut}"])
    return report


class _Survey(NamedTuple):
    rows: int
    columns: list[str]
    text_column: str


def _survey(rows: Rows, text_column: str) -> _Survey:
    """Read the file once before classification, because a column may first occur in the last row."""
    columns: dict[str, None] = {}
    count = 0
    for row in rows:
        count += 1
        if isinstance(row, Row):
            columns.update(dict.fromkeys(row.cells))
    return _Survey(count, list(columns), _text_column(rows.path, list(columns), text_column))


def _text_column(path: Path, columns: list[str], named: str) -> str:
    if not columns:
        raise StudioError(f"{path.name} has no row that can be read. Correct it, or export it again as csv.")
    choice = f"its columns are {', '.join(map(repr, columns[:20]))}"
    if named and named not in columns:
        raise StudioError(f"{path.name} has no column {named!r}; {choice}. Name one of them.")
    if named or len(columns) == 1:
        return named or columns[0]
    known = {column.strip().casefold(): column for column in columns}
    for name in LABELLED.fields["text"]:
        if name in known:
            return known[name]
    raise StudioError(f"Which column of {path.name} holds the texts? Name it: {choice}.")


def _labelled(
    rows: Iterator[Row | BadRow], text_column: str, predict: Predict, cancel: threading.Event
) -> Iterator[LabelledRow]:
    while not cancel.is_set() and (batch := list(islice(rows, BATCH))):
        read = [_text_of(row, text_column) for row in batch]
        texts = [text for text in read if isinstance(text, str)]
        predictions = iter(predict(texts) if texts else ())
        for row, text in zip(batch, read, strict=True):
            cells = row.cells if isinstance(row, Row) else {}
            if isinstance(text, BadRow):
                yield LabelledRow(row.line, cells, None, text)
                continue
            prediction = next(predictions, None)
            if prediction is None:
                return
            yield LabelledRow(row.line, cells, prediction)


def _text_of(row: Row | BadRow, column: str) -> str | BadRow:
    if isinstance(row, BadRow):
        return row
    try:
        return needed_text({"text": row.cells.get(column)}, "text")
    except Problem as problem:
        return BadRow(row.line, column, problem.reason, problem.remedy)


def _keep_finished(report: FileReport) -> str:
    """Return a sentence with the number of finished rows; delete the new file if it has no row."""
    if report.out is None or report.rows:
        return f" {report.finished}"
    report.out.unlink(missing_ok=True)
    return ""


class _Columns(NamedTuple):
    label: str
    confidence: str
    scores: dict[str, str]
    """The column of each label."""


def _new_columns(taken: Sequence[str], labels: Sequence[str]) -> tuple[_Columns, list[str]]:
    """Return the names of the new columns, and a notice for each that was renamed."""
    names, notices = [], []
    used = set(taken)
    for name in ("label", "confidence", *labels):
        free = name if name not in used else _free(name, used)
        if free != name:
            notices.append(f"There is a column {name!r} already, so the new one is called {free!r}.")
        used.add(free)
        names.append(free)
    return _Columns(names[0], names[1], dict(zip(labels, names[2:], strict=True))), notices


def _free(name: str, used: set[str]) -> str:
    tries = chain([f"{name} (predicted)"], (f"{name} (predicted {number})" for number in range(2, len(used) + 3)))
    return next(each for each in tries if each not in used)


Write = Callable[[LabelledRow], object]


def _writer(out: Path | None, old: list[str], new: _Columns) -> AbstractContextManager[Write]:
    """Return the writer of the new file.

    Raises:
        StudioError: the file's extension is not supported, it exists, or it can't be created.
    """
    if out is None:
        return nullcontext(lambda row: None)
    if out.suffix.lower() not in (".csv", ".jsonl"):
        raise StudioError(f"Results are written as .csv or .jsonl; {out.name!r} is neither. Change its extension.")
    try:
        file = out.open("x", encoding="utf-8", newline="")
    except FileExistsError as error:
        raise StudioError(f"{out} exists already. Name another file, or delete it.") from error
    except OSError as error:
        raise StudioError(
            f"{out} can't be created ({error.strerror}). Name a file in a folder that you can write to."
        ) from error
    return _CsvWriter(file, old, new) if out.suffix.lower() == ".csv" else _JsonWriter(file, new)


class _JsonWriter:
    def __init__(self, file: TextIO, new: _Columns) -> None:
        self.file, self.new = file, new

    def __enter__(self) -> Write:
        return self.write

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, row: LabelledRow) -> None:
        cells = {**{name: _finite(cell) for name, cell in row.cells.items()}, **_predicted(row.prediction, self.new)}
        self.file.write(json.dumps(cells, ensure_ascii=False) + "\n")


class _CsvWriter(_JsonWriter):
    def __init__(self, file: TextIO, old: list[str], new: _Columns) -> None:
        super().__init__(file, new)
        self.columns = [*old, new.label, new.confidence, *new.scores.values()]
        # The default line terminator, because csv quotes only the line breaks that are part of the terminator.
        self.rows = csv.writer(file)
        self.escaped = 0

    def __enter__(self) -> Write:
        self.rows.writerow(map(_harmless, self.columns))
        return self.write

    def write(self, row: LabelledRow) -> None:
        cells = {**row.cells, **_predicted(row.prediction, self.new)}
        if unknown := [name for name in cells if name not in self.columns]:
            raise StudioError(f"The file got a new column {unknown[0]!r} while it was read. Start again.")
        texts = [_csv_cell(cells.get(name)) for name in self.columns]
        written = [*map(_harmless, texts)]
        self.escaped += sum(before != after for before, after in zip(texts, written, strict=True))
        self.rows.writerow(written)

    def notices(self) -> list[str]:
        """Return a sentence about the cells that are not as they were, if there are any."""
        if not self.escaped:
            return []
        return [
            f"Cells that a spreadsheet would read as a formula begin with an apostrophe now: {self.escaped:,}. Write a "
            ".jsonl file to keep them as they are."
        ]


def _predicted(prediction: Prediction | None, new: _Columns) -> dict[str, Any]:
    if prediction is None:
        return {new.label: "", new.confidence: None, **dict.fromkeys(new.scores.values())}
    scores = {new.scores[label]: round(score, 6) for label, score in prediction.scores.items()}
    return {new.label: prediction.label, new.confidence: _finite(round(prediction.confidence, 6)), **scores}


def _csv_cell(cell: Any) -> str:
    if _finite(cell) is None:
        return ""
    if isinstance(cell, str):
        return cell
    return json.dumps(cell, ensure_ascii=False)


def _harmless(text: str) -> str:
    """Escape text that a spreadsheet would read as a formula; numbers stay numbers."""
    return f"'{text}" if text.startswith(FORMULA) and not NUMBER.fullmatch(text) else text


def _finite(cell: Any) -> Any:
    """Replace NaN and infinity with None, because JSON does not support them."""
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell
