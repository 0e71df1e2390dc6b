"""Read the rows of csv and tsv files. Cells stay as they are written: a word such as `null` is a word."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any, TextIO

from studio.backend.data.file_type import FileType
from studio.backend.data.row import BadRow, Limits, Lines, Problem, Read, Row, check_text, too_long
from studio.backend.data.table_dialect import SEP_LINE
from studio.errors import StudioError

# The csv module's limit of 131,072 characters is process-wide; `Limits` applies to one file.
csv.field_size_limit(2**31 - 1)
REREAD = 4
"""Most characters that are reread because of stray quotes, as a multiple of those of the file."""


class RecordLines(Lines):
    """Lines for csv.reader. A record may span several lines; `give_back` rereads those after its first.

    Quotes can be written so that each line begins a record as long as the limit. So the characters that are reread are
    limited too.
    """

    def __init__(self, file: TextIO, limits: Limits) -> None:
        super().__init__(file, limits)
        self.record: list[str] = []
        self.size = 0
        self.again: list[str] = []
        self.fresh = self.reread = 0

    def begin(self) -> int:
        """Begin the next record and return the number of its first line."""
        self.record, self.size = [], 0
        return self.number + 1

    def give_back(self) -> None:
        """Read the lines after the record's first again, as separate rows; no-op if too much was reread."""
        size = sum(map(len, self.record[1:]))
        if self.reread + size > REREAD * (self.fresh + self.longest):
            return
        self.reread += size
        self.again += reversed(self.record[1:])
        self.number -= len(self.record) - 1

    def __next__(self) -> str:
        if self.again:
            line = self.again.pop()
            self.number += 1
        else:
            line = super().__next__()
            line = line.lstrip("\ufeff") if self.number == 1 else line
            self.fresh += len(line)
        self.record.append(line)
        self.size += len(line)
        if self.size > self.longest:
            raise too_long(self.limits)
        return line


def table_rows(file: TextIO, limits: Limits, file_type: FileType, notices: list[str]) -> Read:
    """Yield the rows; rows without any text and repeated headers are left out, with a notice."""
    lines = RecordLines(file, limits)
    quotes: Any = {} if file_type.quoted else {"quoting": csv.QUOTE_NONE}
    records = csv.reader(lines, delimiter=file_type.separator, strict=True, **quotes)
    header = _header(records, lines, limits)
    blank = repeated = 0
    while True:
        line = lines.begin()
        try:
            cells = next(records)
        except StopIteration:
            break
        except (Problem, csv.Error) as error:
            yield BadRow(line, *_unread(error, len(lines.record)).args)
            lines.give_back()
        else:
            if _is_header(cells, header):
                repeated += 1
            elif len(cells) > 1 and not any(map(str.strip, cells)):
                blank += 1
            elif _swallows_rows(lines.record, header, file_type):
                yield BadRow(line, *_swallowed(len(lines.record)).args)
                lines.give_back()
            elif cells:
                yield _table_row(line, header, cells)
    if blank:
        notices.append(f"Blank rows that were left out: {blank:,}.")
    if repeated:
        notices.append(f"Rows that repeat the column names and were left out: {repeated:,}.")


def _header(records: Iterator[list[str]], lines: RecordLines, limits: Limits) -> list[str]:
    """Return the column names.

    Raises:
        StudioError: the header can't be read, a name occurs twice, or there are too many columns.
    """
    try:
        cells = next(filter(None, records))
        if SEP_LINE.fullmatch("".join(lines.record)):
            lines.begin()
            cells = next(filter(None, records))
        check_text("", "".join(cells), limits)
    except StopIteration:
        return []
    except csv.Error as error:
        raise StudioError(f"The first line can't be read as column names: it {_stray_quote(str(error))}") from error
    except Problem as problem:
        raise StudioError(f"The first line can't be read as column names: it {problem}") from problem
    names = [_unmarked(name).strip() or f"column {i}" for i, name in enumerate(cells, start=1)]
    check_names(names, limits)
    return names


def check_names(names: list[str], limits: Limits) -> None:
    """Raise StudioError if there are too many columns, or a name occurs twice."""
    if len(names) > limits.columns:
        raise StudioError(f"The file has {len(names):,} columns; at most {limits.columns:,} are read. Delete some.")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise StudioError(f"The column name {twice[0]!r} occurs twice. Rename or delete one of the two columns.")


def _unmarked(name: str) -> str:
    """Return a column name without the byte order mark that programs write twice, and the quotes that it hides."""
    bare = name.lstrip("\ufeff")
    return bare.strip('"') if bare != name else name


def _is_header(cells: list[str], header: list[str]) -> bool:
    marked = bool(cells) and cells[0].startswith("\ufeff")
    return (len(header) > 1 or marked) and [_unmarked(cell).strip() for cell in cells] == header


def _swallows_rows(record: list[str], header: list[str], file_type: FileType) -> bool:
    """Return whether quotes join lines that are rows by themselves. Tab-separated text often has loose quotes."""
    separators = len(header) - 1
    return (
        file_type.separator == "\t"
        and len(record) > 1
        and separators > 0
        and all(line.count("\t") == separators for line in record)
    )


def _table_row(line: int, header: list[str], cells: list[str]) -> Row | BadRow:
    if len(cells) != len(header):
        reason = f"has {len(cells)} cells where the header has {len(header)}"
        return BadRow(line, "", reason, "Put quotes around cells that hold a separator, or add what is missing.")
    return Row(line, dict(zip(header, cells, strict=True)))


def _unread(error: Problem | csv.Error, lines: int) -> Problem:
    """Return why a record of so many lines can't be read. A long record has several only if a quote joins them."""
    if not isinstance(error, Problem):
        return _stray_quote(str(error))
    return error if lines == 1 else _stray_quote(f"the record of {lines:,} lines {error.reason}")


def _stray_quote(error: str) -> Problem:
    remedy = 'Close the cell with a quote, and double each quote inside it: "".'
    return Problem("", f"has a quote that is not closed or not doubled ({error})", remedy)


def _swallowed(lines: int) -> Problem:
    remedy = 'Double each quote that is part of a text: "".'
    return Problem("", f"has a quote that is closed {lines - 1} lines later, though each line is a whole row", remedy)
