"""Detect how a table of text separates and quotes its cells, from the beginning of the file.

sniff(head, "csv", whole=True)      # Dialect(separator=";", quoted=True), or None if the text is no table

Every separator is tried with and without quotes; the one that gives most rows as many cells as the header wins.
"""

from __future__ import annotations

import csv
import re
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

SEPARATORS = {"csv": ",;|\t", "tsv": "\t,;|"}
"""Separators per file type, in the order in which they are tried."""
SEP_LINE = re.compile(r'\s*"?sep=([,;|\t])"?\s*')
"""The first line in which Excel names the separator."""
COMPARED = 200
"""Rows that are compared with the header."""


class Dialect(NamedTuple):
    separator: str
    quoted: bool = True
    """False if quotes are characters like any other."""


def sniff(head: str, declared: str, whole: bool) -> Dialect | None:
    """Return the dialect, or None if the text is no table.

    Args:
        declared: csv or tsv by the file's extension. Any other text must have a header of plain names, because prose
            has commas too.
        whole: whether `head` is the whole text; its last line may be cut otherwise.
    """
    lines = re.split("(?<=\n)|(?<=\r)(?!\n)", head.lstrip("\ufeff\r\n"))
    lines = [line for line in (lines if whole or len(lines) < 3 else lines[:-1]) if line]
    if lines and (named := SEP_LINE.fullmatch(lines[0])):
        return Dialect(named[1], _is_quoted(lines[1:], named[1]))
    found = [_tried(lines, separator) for separator in SEPARATORS.get(declared, SEPARATORS["csv"])]
    tables = [each for each in found if each.columns > 1 and (declared in SEPARATORS or each.is_plain)]
    if tables:
        return max(tables, key=lambda each: each.share).dialect
    return None


class _Tried(NamedTuple):
    dialect: Dialect
    columns: int
    share: float
    """Share of the rows with as many cells as the header."""
    is_plain: bool
    """Whether the header consists of plain names, and every row has as many cells."""


def _tried(lines: list[str], separator: str) -> _Tried:
    quoted = _is_quoted(lines, separator)
    header, *rows = _records(lines, separator, quoted) or [[]]
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    share = sum(len(row) == len(header) for row in rows) / len(rows) if rows else 0.0
    is_plain = share == 1 and all(re.fullmatch(r"[^\W\d][\w ]{0,40}", name.strip(" \ufeff")) for name in header)
    return _Tried(Dialect(separator, quoted), len(header), share, is_plain)


def _records(lines: list[str], separator: str, quoted: bool) -> list[list[str]]:
    """Return the first rows, up to the first one whose quotes don't match."""
    if not quoted:
        return [line.rstrip("\r\n").split(separator) for line in lines[:COMPARED]]
    records: list[list[str]] = []
    with suppress(csv.Error):
        records.extend(filter(None, islice(csv.reader(lines, delimiter=separator, strict=True), COMPARED)))
    return records


def _is_quoted(lines: list[str], separator: str) -> bool:
    """Return whether quotes enclose cells.

    Tab-separated text is often written without quoting, so that a loose quote would join rows: its quotes are text if
    every line is a row by itself, and they can't be those of a table.
    """
    lines = [line.rstrip("\r\n") for line in lines if line.strip()]
    if separator != "\t" or not any('"' in line for line in lines) or len({line.count("\t") for line in lines}) != 1:
        return True
    try:
        count = sum(1 for _ in csv.reader(lines, delimiter="\t", strict=True))
    except csv.Error:
        return False
    return count == len(lines) and not _has_needless_quotes(lines)


def _has_needless_quotes(lines: list[str]) -> bool:
    """Return whether a column has quotes around few cells, none of which needs them."""
    for column in zip(*(line.split("\t") for line in lines[1:]), strict=True):
        cells = [cell for cell in column if cell]
        quoted = [cell[1:-1] for cell in cells if len(cell) > 1 and cell[0] == cell[-1] == '"']
        if any('"' not in cell for cell in quoted) and len(quoted) < len(cells) / 2:
            return True
    return False
