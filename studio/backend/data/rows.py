"""Stream the rows of a local file: csv, tsv, json, jsonl, parquet or plain text.

    rows = Rows(Path("data.csv"))
    for row in rows:                     # Row(line, cells) or BadRow(line, column, reason, remedy)
        ...
    rows.notices                         # assumptions: an encoding, a separator, a type other than the extension's

The readers use csv, json and pyarrow (in a separate process, because damaged files can crash it) instead of the
builders of `datasets`, which infer types from whole blocks and stop at the first bad row without naming its line.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from pydantic import Field

from studio.backend.data.file_type import FileType, identify
from studio.backend.data.json_items import json_items
from studio.backend.data.parquet_rows import ParquetRows
from studio.backend.settings import Settings, settings
from studio.errors import StudioError

BLOCK = 1 << 16
MISSING = ("nan", "null")
"""Text that spreadsheets and pandas write into an empty csv cell."""

# The csv module's limit of 131,072 characters is process-wide; `Limits` applies to one file.
csv.field_size_limit(2**31 - 1)


DEPTH = 32


@settings
class Limits(Settings):
    """Limits on what is read from a file.

    Raises:
        StudioError: values of the wrong type or out of range; the message lists all of them.
    """

    file_bytes: int = Field(default=200_000_000, ge=1, le=2**31)
    """Largest file, and the largest size that a parquet file may unpack to."""
    rows: int = Field(default=200_000, ge=1, le=2**31)
    """Reading stops after this many rows, with a notice."""
    columns: int = Field(default=256, ge=1, le=2**31)
    """Most columns of a row."""
    cell_characters: int = Field(default=100_000, ge=1, le=2**31)
    """Longest text in a cell; a longer one makes a bad row."""
    line_characters: int = Field(default=1_000_000, ge=1, le=2**31)
    """Longest line, and longest row of a json or csv file that spans lines."""
    depth: int = Field(default=DEPTH, ge=1, le=100)
    """Deepest nesting of lists and objects in a row."""


@dataclass(frozen=True, slots=True)
class Row:
    line: int
    cells: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that can't be used; `column` is empty if the whole row is bad."""

    line: int
    column: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        where = f"line {self.line}" + (f", column {self.column!r}" if self.column else "")
        return f"{where}: {self.reason}. {self.remedy}"


class Problem(Exception):
    """A problem with one row: (column, reason, remedy)."""

    def __init__(self, column: str, reason: str, remedy: str) -> None:
        super().__init__(column, reason, remedy)
        self.column, self.reason, self.remedy = column, reason, remedy

    def __str__(self) -> str:
        return f"{self.reason}. {self.remedy}"


Read = Iterator[Row | BadRow]


class Rows:
    """Iterate once over the rows of a file.

    `line` is the row number if a row has no line number: in parquet, and in json on a single line.

    Raises:
        StudioError: the file is missing, empty, too large, or of a type without rows.
    """

    def __init__(self, path: Path, limits: Limits | None = None) -> None:
        self.path = path
        self.limits = limits or Limits()
        self.type: FileType = identify(path, self.limits.file_bytes)
        self.notices = list(self.type.notices)

    def __iter__(self) -> Read:
        """Yield the rows. Raise StudioError if the file is damaged or has no rows."""
        count = 0
        try:
            for count, row in enumerate(self._read(), start=1):
                if count > self.limits.rows:
                    self.notices.append(
                        f"Only the first {self.limits.rows:,} rows of {self.path.name} were read, which is the limit. "
                        "Split the file to use the rest."
                    )
                    return
                yield row if isinstance(row, BadRow) else self._checked(row)
        except UnicodeDecodeError as error:
            raise StudioError(f"{self.path.name} is not valid {self.type.encoding}. Save it as UTF-8.") from error
        except OSError as error:
            raise StudioError(f"{self.path.name} can't be read ({error}). Check the file and its disk.") from error
        if not count:
            raise StudioError(f"{self.path.name} has no rows apart from a header. Add one row for each example.")

    def _read(self) -> Read:
        if self.type.kind == "parquet":
            yield from _parquet(self.path, self.limits, self.notices)
            return
        with self.type.open(self.path) as file:
            yield from TEXT_READERS[self.type.kind](file, self.limits, self.type)

    def _checked(self, row: Row) -> Row | BadRow:
        try:
            if len(row.cells) > self.limits.columns:
                raise Problem("", f"has {len(row.cells):,} columns", f"At most {self.limits.columns:,} are read.")
            for column, cell in row.cells.items():
                _check_text("", column, self.limits)
                _check_cell(column, cell, self.limits, 1)
        except Problem as problem:
            return BadRow(row.line, *problem.args)
        return row


def _check_cell(column: str, cell: Any, limits: Limits, depth: int) -> None:
    if depth > limits.depth:
        raise _too_deep(column, limits.depth)
    if isinstance(cell, str):
        _check_text(column, cell, limits)
    elif isinstance(cell, (list, dict)):
        for value in [*cell, *cell.values()] if isinstance(cell, dict) else cell:
            _check_cell(column, value, limits, depth + 1)


def _check_text(column: str, text: str, limits: Limits) -> None:
    if len(text) > limits.cell_characters:
        longest = f"Keep it under {limits.cell_characters:,} characters, or split it into several rows."
        raise Problem(column, f"holds {len(text):,} characters", longest)
    if re.search("[\ud800-\udfff]", text):
        raise Problem(column, "holds bytes that are not valid text", "Save the whole file in one encoding, UTF-8.")
    if "\0" in text:
        raise Problem(column, "holds a NUL character", "Delete it, or save the file as UTF-8.")


class Lines:
    """Iterate over the lines of a text file. Lines beyond the limit are cut after limit + 1 characters."""

    def __init__(self, file: TextIO, limits: Limits) -> None:
        self.file = file
        self.limits, self.longest = limits, limits.line_characters
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = rest = self.file.readline(self.longest + 1)
        if not line:
            raise StopIteration
        while len(line) > self.longest and rest and not rest.endswith("\n"):
            rest = self.file.readline(BLOCK)
        self.number += 1
        return line


class RecordLines(Lines):
    """Lines for csv.reader. A record may span several lines; `give_back` rereads those after its first."""

    def __init__(self, file: TextIO, limits: Limits) -> None:
        super().__init__(file, limits)
        self.record: list[str] = []
        self.size = 0
        self.again: list[str] = []

    def begin(self) -> int:
        """Begin the next record and return the number of its first line."""
        self.record, self.size = [], 0
        return self.number + 1

    def give_back(self) -> None:
        """Read the lines after the record's first again, as separate rows."""
        self.again += reversed(self.record[1:])
        self.number -= len(self.record) - 1

    def __next__(self) -> str:
        if self.again:
            line = self.again.pop()
            self.number += 1
        else:
            line = super().__next__()
        self.record.append(line)
        self.size += len(line)
        if self.size > self.longest:
            raise _too_long(self.limits)
        return line


def _table(file: TextIO, limits: Limits, file_type: FileType) -> Read:
    lines = RecordLines(file, limits)
    records = csv.reader(lines, delimiter=file_type.separator, strict=True)
    header = _header(records, limits)
    while True:
        line = lines.begin()
        try:
            cells = next(records)
        except StopIteration:
            return
        except Problem as problem:
            yield BadRow(line, *problem.args)
        except csv.Error as error:
            yield BadRow(line, *_stray_quote(error).args)
            lines.give_back()
        else:
            if cells:
                yield _table_row(line, header, cells)


def _header(records: Iterator[list[str]], limits: Limits) -> list[str]:
    """Return the column names.

    Raises:
        StudioError: the header can't be read, a name occurs twice, or there are too many columns.
    """
    try:
        cells = next(filter(None, records))
        _check_text("", "".join(cells), limits)
    except csv.Error as error:
        raise StudioError(f"The first line can't be read as column names: it {_stray_quote(error)}") from error
    except Problem as problem:
        raise StudioError(f"The first line can't be read as column names: it {problem}") from problem
    names = [name.strip() or f"column {i}" for i, name in enumerate(cells, start=1)]
    _check_names(names, limits)
    return names


def _check_names(names: list[str], limits: Limits) -> None:
    if len(names) > limits.columns:
        raise StudioError(f"The file has {len(names):,} columns; at most {limits.columns:,} are read. Delete some.")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise StudioError(f"The column name {twice[0]!r} occurs twice. Rename or delete one of the two columns.")


def _table_row(line: int, header: list[str], cells: list[str]) -> Row | BadRow:
    if len(cells) != len(header):
        reason = f"has {len(cells)} cells where the header has {len(header)}"
        return BadRow(line, "", reason, "Put quotes around cells that hold a separator, or add what is missing.")
    present = [None if cell.strip().lower() in MISSING else cell for cell in cells]
    return Row(line, dict(zip(header, present, strict=True)))


def _json_lines(file: TextIO, limits: Limits, file_type: FileType) -> Read:
    lines = Lines(file, limits)
    for text in lines:
        if text.strip():
            yield _json_row(lines.number, text, limits)


def _json_list(file: TextIO, limits: Limits, file_type: FileType) -> Read:
    for number, (line, text) in enumerate(json_items(file, limits.line_characters), start=1):
        yield _json_row(number if line == 1 else line, text, limits)


def _json_row(line: int, text: str, limits: Limits) -> Row | BadRow:
    try:
        if len(text) > limits.line_characters:
            raise _too_long(limits)
        cells = parse_json(text, limits.depth)
        if not isinstance(cells, dict):
            raise Problem("", "is not a JSON object", 'Write it as {"column": "text", ...}.')
    except Problem as problem:
        return BadRow(line, *problem.args)
    return Row(line, cells)


def parse_json(text: str, depth: int = DEPTH) -> Any:
    """Parse one JSON value.

    Raises:
        Problem: the text is not JSON, is nested too deeply, or has a duplicate key.
    """
    if _nesting(text) > depth:
        raise _too_deep("", depth)
    try:
        return json.loads(text, object_pairs_hook=_object)
    except ValueError as error:
        raise Problem("", f"is not valid JSON ({error})", "Correct it there.") from error


def _nesting(text: str) -> int:
    deepest = depth = 0
    for mark in re.findall(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', text, re.S):
        depth += (mark in "[{") - (mark in "]}")
        deepest = max(deepest, depth)
    return deepest


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    cells = dict(pairs)
    if len(cells) < len(pairs):
        raise Problem("", "has a key twice", "Rename or delete one of the two.")
    return cells


def _paragraphs(file: TextIO, limits: Limits, file_type: FileType) -> Read:
    """Yield one row per paragraph; blank lines separate paragraphs."""
    lines = Lines(file, limits)
    begin, paragraph = 1, ""
    for line in chain(lines, [""]):
        if line.strip():
            begin = begin if paragraph else lines.number
            room = limits.line_characters + 1 - len(paragraph)
            paragraph += line[:room]
        elif paragraph:
            too_long = len(paragraph) > limits.line_characters
            yield BadRow(begin, *_too_long(limits).args) if too_long else Row(begin, {"text": paragraph.strip()})
            paragraph = ""


def _parquet(path: Path, limits: Limits, notices: list[str]) -> Read:
    with ParquetRows(path, limits.file_bytes) as file:
        _check_names(file.names, limits)
        if file.left_out:
            notices.append(f"Columns without text were not read: {', '.join(file.left_out)}.")
        for number, found in enumerate(file, start=1):
            if "cells" in found:
                yield Row(number, found["cells"])
            else:
                yield BadRow(number, "", found["reason"], "Export the file again in UTF-8.")


def _stray_quote(error: csv.Error) -> Problem:
    remedy = 'Close the cell with a quote, and double each quote inside it: "".'
    return Problem("", f"has a quote that is not closed or not doubled ({error})", remedy)


def _too_deep(column: str, depth: int) -> Problem:
    return Problem(column, f"is nested deeper than {depth} levels", "Flatten it.")


def _too_long(limits: Limits) -> Problem:
    return Problem("", f"is longer than {limits.line_characters:,} characters", "Cut it into several rows.")


TEXT_READERS: dict[str, Callable[[TextIO, Limits, FileType], Read]] = {
    "csv": _table,
    "tsv": _table,
    "json": _json_list,
    "jsonl": _json_lines,
    "text": _paragraphs,
}
