"""Formats of rows. Each module defines a `FORMAT` that maps columns to messages, or to a text and its labels.

for format in discover("studio.backend.data.formats", "FORMAT"):
    columns = format.locate(["Question", "Answer"])          # {"prompt": "Question", "completion": "Answer"}
    format.convert({"Question": "1 + 1?", "Answer": "2"}, columns)

`studio/backend/data/turns.py` reads conversations for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from studio.backend.data.row import Problem

Cells = dict[str, Any]
"""The cells of a row, keyed by field."""
Messages = list[dict[str, Any]]
"""Objects with role and content, and `train: False` for an answer that is not trained."""
SYSTEM = ("system", "system_prompt", "system_message", "system prompt")
"""Column names of the system message, in all formats."""


@dataclass(frozen=True)
class Format:
    name: str
    order: int
    """Formats with a lower order are tried first."""
    help: str
    fields: dict[str, tuple[str, ...]]
    """Required fields, each with the column names that are recognized for it."""
    messages: Callable[[Cells], Messages]
    """Returns the messages. Raises Problem with the field as its column."""
    task: str = "chat"
    """The task of the recipes that use these rows."""
    labels: Callable[[Cells], tuple[str, ...]] = lambda cells: ()
    """Returns the labels of the text. Raises as `messages`."""
    optional: dict[str, tuple[str, ...]] = field(default_factory=dict)
    fits: Callable[[Cells], bool] = lambda cells: True
    """Whether a row is of this format, for formats that share column names."""
    check: Callable[[Cells], None] = lambda cells: None
    """Raises Problem with what a row looks like, if `fits` is False for another reason than those of `messages`."""
    explains: bool = True
    """Whether the reason why a row does not fit helps if no format does."""
    guessed: frozenset[str] = frozenset()
    """Recognized column names, in lower case, that may also mean something else."""
    unused_keys: Callable[[Cells], set[str]] = lambda cells: set()
    """Returns the keys inside of messages that are not read."""
    notice: str = ""
    """What a person should know of this reading."""

    def locate(self, columns: Sequence[str], chosen: dict[str, str] | None = None) -> dict[str, str] | None:
        """Return the column of each field; `chosen` takes precedence.

        Returns None if a required field has no column, or `chosen` names a field that this format lacks. If the file
        has one column and the format one required field, they match regardless of the column's name.
        """
        known = {column.strip().lower(): column for column in columns}
        names = {**self.fields, **self.optional}
        found = {key: known[name] for key in names for name in reversed(names[key]) if name in known}
        if len(columns) == len(self.fields) == 1:
            found = {next(iter(self.fields)): columns[0], **found}
        located = {**found, **(chosen or {})}
        return located if set(self.fields) <= set(located) <= set(names) else None

    def convert(self, row: dict[str, Any], columns: dict[str, str]) -> Messages:
        """Return the messages of a row.

        Raises:
            Problem: the row is bad. Its `column` is the column of the file.
        """
        return self._read(self.messages, row, columns)

    def check_row(self, row: dict[str, Any], columns: dict[str, str]) -> None:
        """Raise Problem as `check`, with the column of the file."""
        self._read(self.check, row, columns)

    def labels_of(self, row: dict[str, Any], columns: dict[str, str]) -> tuple[str, ...]:
        """Return the labels of a row. Raises as `convert`."""
        return self._read(self.labels, row, columns)

    def _read(self, read: Callable[[Cells], Any], row: dict[str, Any], columns: dict[str, str]) -> Any:
        try:
            return read(self.cells(row, columns))
        except Problem as problem:
            raise Problem(columns.get(problem.column, problem.column), problem.reason, problem.remedy) from None

    def cells(self, row: dict[str, Any], columns: dict[str, str]) -> Cells:
        return {key: row.get(column) for key, column in columns.items()}


def needed_text(cells: Cells, key: str) -> str:
    """Return the text of a field. Raise Problem if it is empty or not text."""
    text = optional_text(cells, key)
    if not text:
        raise Problem(key, "is empty", "Fill it in, or delete the row.")
    return text


def optional_text(cells: Cells, key: str) -> str:
    """Return the text of a field, "" if it is empty. Raise Problem if it is not text."""
    text = cells.get(key)
    if text is None or text != text:  # NaN
        return ""
    if not isinstance(text, str):
        raise Problem(key, f"holds {type(text).__name__} {str(text)[:40]!r} instead of text", "Write it in quotes.")
    return text if text.strip() else ""
