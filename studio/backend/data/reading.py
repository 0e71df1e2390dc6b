"""Convert the rows of a file to examples, and collect what a person should know of the reading.

reading = Reading(rows, Wanted("auto", {}, "chat"))     # detects the format by the first rows
examples = [*reading.examples()]
reading.bad_rows, reading.warnings(), reading.notices()
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain

from studio.backend.data.detection import Detected, Wanted, detect, guess_notice, listed
from studio.backend.data.examples import Example
from studio.backend.data.rows import BadRow, Problem, Row, Rows

MISSING = ("nan", "null", "none", "n/a", "<na>")
"""Words that programs write into cells without a value, in lower case."""
PROBED_ROWS = 50
"""Good rows that are used to detect the format."""
FIRST_CHARACTERS = 4_000_000
"""Characters of text after which reading for a preview stops."""


class Reading:
    """Convert the rows of a file once.

    Columns and keys may first occur in any row of a json file, so they are collected as long as rows are read.

    Args:
        first: stop after about so many rows, or after `FIRST_CHARACTERS`; 0 reads all.

    Raises:
        StudioError: as `detect`.
    """

    def __init__(self, rows: Rows, wanted: Wanted, first: int = 0) -> None:
        self.rows, self.wanted, self.first = rows, wanted, first
        self.bad_rows: list[BadRow] = []
        self.count = 0
        self.is_complete = False
        stream = iter(rows)
        probed = probe(stream)
        self.detected: Detected = detect(rows.path, probed, wanted)
        self._stream = chain(probed, stream)
        self._names = dict.fromkeys(chain.from_iterable(row.cells for row in probed if isinstance(row, Row)), 0)
        self._keys: set[str] = set()
        self._late: list[str] = []
        self._missing: Counter[tuple[str, str]] = Counter()

    def examples(self) -> Iterator[Example]:
        characters = 0
        for row in self._stream:
            self.count += 1
            example = row if isinstance(row, BadRow) else self._example(row)
            if isinstance(example, BadRow):
                self.bad_rows.append(example)
            else:
                characters += sum(len(message["content"]) for message in example.messages)
                yield example
            if self.first and (self.count == self.first or characters > FIRST_CHARACTERS):
                self.is_complete = next(self._stream, None) is None
                return
        self.is_complete = True

    def total(self) -> int:
        return self.count if self.is_complete else self.rows.total(self.count)

    def warnings(self) -> list[str]:
        """Return what the reading assumes and leaves out, which changes what is trained."""
        warnings = [*self.detected.notices, *self._late]
        if self._keys:
            warnings.append(f"Unused keys of the messages: {listed(sorted(self._keys))}.")
        if unused := [name for name in self._names if name not in self.detected.columns.values()]:
            late = [f"{name!r} from line {self._names[name]} on" for name in unused if self._names[name]]
            since = f" ({', '.join(late[:5])})" if late else ""
            warnings.append(f"Unused columns: {listed(unused)}{since}.")
        return warnings

    def notices(self) -> list[str]:
        """Return the assumptions about the file, and a notice for each word that may stand for a missing value."""
        words = [
            f"Cells of {column!r} that hold the word {word!r}: {count:,}. It is read as text; leave a cell empty if "
            "its value is missing."
            for (column, word), count in self._missing.items()
        ]
        return [*words, *self.rows.notices]

    def _example(self, row: Row) -> Example | BadRow:
        if not row.cells.keys() <= self._names.keys():
            self._add_columns(row)
        format, columns = self.detected.format, self.detected.columns
        self._keys |= format.unused_keys(format.cells(row.cells, columns))
        try:
            example = Example(row.line, format.convert(row.cells, columns), format.labels_of(row.cells, columns))
        except Problem as problem:
            return BadRow(row.line, *problem.args)
        for column in columns.values():
            if isinstance(cell := row.cells.get(column), str) and cell.strip().lower() in MISSING:
                self._missing[column, cell.strip()] += 1
        return example

    def _add_columns(self, row: Row) -> None:
        """Note the columns that first occur in this row. A field without a column is read from them."""
        new = [name for name in row.cells if name not in self._names]
        self._names |= dict.fromkeys(new, row.line)
        format, columns, _ = self.detected
        found = format.locate([*self._names], self.wanted.columns) or {}
        fields = {field: column for field, column in found.items() if field not in columns and column in new}
        if not fields:
            return
        self.detected = self.detected._replace(columns=columns | fields)
        self._late += [
            f"{column!r} first occurs on line {row.line}, and is read as {field}." for field, column in fields.items()
        ]
        self._late += guess_notice(format, fields, self.wanted)


def probe(stream: Iterator[Row | BadRow]) -> list[Row | BadRow]:
    """Return the rows up to the last of the first `PROBED_ROWS` good ones."""
    rows: list[Row | BadRow] = []
    good = 0
    for row in stream:
        rows.append(row)
        good += isinstance(row, Row)
        if good == PROBED_ROWS:
            break
    return rows
