"""Rows of a file, good and bad, and the limits on what is read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from pydantic import Field

from studio.backend.settings import Settings, settings

BLOCK = 1 << 16
DEPTH = 32


@settings
class Limits(Settings):
    """Limits on what is read from a file.

    Raises:
        StudioError: values of the wrong type or out of range; the message lists all of them.
    """

    file_bytes: int = Field(default=200_000_000, ge=1, le=2**40)
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
        while len(line) > self.longest and rest and not rest.endswith(("\n", "\r")):
            rest = self.file.readline(BLOCK)
        self.number += 1
        return line


def check_cell(column: str, cell: Any, limits: Limits, depth: int = 1) -> None:
    """Raise Problem if a cell is nested too deeply, or holds text that can't be used."""
    if depth > limits.depth:
        raise too_deep(column, limits.depth)
    if isinstance(cell, str):
        check_text(column, cell, limits)
    elif isinstance(cell, (list, dict)):
        for value in [*cell, *cell.values()] if isinstance(cell, dict) else cell:
            check_cell(column, value, limits, depth + 1)


def check_text(column: str, text: str, limits: Limits) -> None:
    if len(text) > limits.cell_characters:
        longest = f"Keep it under {limits.cell_characters:,} characters, or split it into several rows."
        raise Problem(column, f"holds {len(text):,} characters", longest)
    if not text.isascii() and re.search("[\ud800-\udfff]", text):
        raise Problem(column, "holds bytes that are not valid text", "Save the whole file in one encoding, UTF-8.")
    if "\0" in text:
        raise Problem(column, "holds a NUL character", "Delete it, or save the file as UTF-8.")


def too_deep(column: str, depth: int) -> Problem:
    return Problem(column, f"is nested deeper than {depth} levels", "Flatten it.")


def too_long(limits: Limits) -> Problem:
    return Problem("", f"is longer than {limits.line_characters:,} characters", "Cut it into several rows.")
