"""Stream the rows of a local file: csv, tsv, json, jsonl, parquet or plain text.

    rows = Rows(Path("data.csv"))
    for row in rows:                     # Row(line, cells) or BadRow(line, column, reason, remedy)
        ...
    rows.notices                         # assumptions: an encoding, a separator, a type other than the extension's

The readers use csv, json and pyarrow (in a separate process, because damaged files can crash it) instead of the
builders of `datasets`, which infer types from whole blocks and stop at the first bad row without naming its line.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import TextIO

from studio.backend.data.file_type import FileType, identify
from studio.backend.data.json_rows import json_file, json_lines
from studio.backend.data.parquet_rows import ParquetRows
from studio.backend.data.row import BadRow, Limits, Lines, Problem, Read, Row, check_cell, check_text, too_long
from studio.backend.data.table_rows import check_names, table_rows
from studio.errors import StudioError


class Rows:
    """Iterate once over the rows of a file.

    `line` is the row number if a row has no line number: in parquet, and in json on a single line.

    Raises:
        StudioError: the file is missing, empty, too large, or of a type without rows.
    """

    def __init__(self, path: Path, limits: Limits | None = None, encoding: str = "auto") -> None:
        self.path = path
        self.limits = limits or Limits()
        self.type: FileType = identify(path, self.limits.file_bytes, encoding)
        self.notices = list(self.type.notices)
        self._file: TextIO | ParquetRows | None = None
        self._count: int | None = None  # of a document that is parsed as a whole

    def __iter__(self) -> Read:
        """Yield the rows. Raise StudioError if the file is damaged or has no rows."""
        count = 0
        try:
            for count, row in enumerate(self._read(), start=1):
                if count > self.limits.rows:
                    self.notices.insert(
                        0,
                        f"Only the first {self.limits.rows:,} rows of {self.path.name} were read, which is the limit. "
                        "Split the file to use the rest.",
                    )
                    return
                yield row if isinstance(row, BadRow) else self._checked(row)
        except UnicodeDecodeError as error:
            raise StudioError(f"{self.path.name} is not valid {self.type.encoding}. Save it as UTF-8.") from error
        except OSError as error:
            raise StudioError(f"{self.path.name} can't be read ({error}). Check the file and its disk.") from error
        if not count:
            raise StudioError(f"{self.path.name} has no rows apart from a header. Add one row for each example.")

    def total(self, read: int) -> int:
        """Return an estimate of all rows after the first `read` ones; exact for parquet and for a document."""
        if isinstance(self._file, ParquetRows):
            return min(self._file.rows, self.limits.rows)
        if self._count is not None:
            return min(self._count, self.limits.rows)
        # A text file is at the end of its last block, which is more than the rows take.
        position = self._file.buffer.tell() if self._file is not None else 0  # type: ignore[attr-defined]
        return min(max(read, round(read * self.path.stat().st_size / max(position, 1))), self.limits.rows)

    def _read(self) -> Read:
        if self.type.kind == "parquet":
            with ParquetRows(self.path, self.limits.file_bytes) as self._file:
                yield from _parquet(self._file, self.limits, self.notices)
            return
        with self.type.open(self.path) as file:
            self._file = file
            rows = TEXT_READERS[self.type.kind](file, self.limits, self.type, self.notices)
            self._count = len(rows) if isinstance(rows, list) else None
            yield from rows

    def _checked(self, row: Row) -> Row | BadRow:
        try:
            if len(row.cells) > self.limits.columns:
                raise Problem("", f"has {len(row.cells):,} columns", f"At most {self.limits.columns:,} are read.")
            for column, cell in row.cells.items():
                check_text("", column, self.limits)
                check_cell(column, cell, self.limits)
        except Problem as problem:
            return BadRow(row.line, *problem.args)
        return row


def _paragraphs(file: TextIO, limits: Limits, file_type: FileType, notices: list[str]) -> Read:
    """Yield one row per paragraph; blank lines separate paragraphs."""
    lines = Lines(file, limits)
    begin, paragraph = 1, ""
    for line in chain(lines, [""]):
        if line.strip():
            begin = begin if paragraph else lines.number
            room = limits.line_characters + 1 - len(paragraph)
            paragraph += line[:room]
        elif paragraph:
            is_long = len(paragraph) > limits.line_characters
            yield BadRow(begin, *too_long(limits).args) if is_long else Row(begin, {"text": paragraph.strip()})
            paragraph = ""


def _parquet(file: ParquetRows, limits: Limits, notices: list[str]) -> Read:
    check_names(file.names, limits)
    if file.left_out:
        notices.append(f"Columns without text were not read: {', '.join(file.left_out)}.")
    for number, found in enumerate(file, start=1):
        if "cells" in found:
            yield Row(number, found["cells"])
        else:
            yield BadRow(number, "", found["reason"], "Export the file again in UTF-8.")


TEXT_READERS: dict[str, Callable[[TextIO, Limits, FileType, list[str]], Read | list[Row]]] = {
    "csv": table_rows,
    "tsv": table_rows,
    "json": json_file,
    "jsonl": json_lines,
    "text": _paragraphs,
}
