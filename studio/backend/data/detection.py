"""Detect the format of rows: which columns hold the fields, and what a person should know of this reading.

detected = detect(path, rows, Wanted("auto", {}, "chat"))
detected.format, detected.columns, detected.notices
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from studio.backend.data.formats import Format
from studio.backend.data.row import BadRow, Problem, Row
from studio.backend.data.turns import ROLES, TOOL_ROLES
from studio.errors import StudioError
from studio.registry import discover

SHOWN_BAD_ROWS = 20


class Wanted(NamedTuple):
    """What a person chose; see `DataSettings`."""

    format: str
    columns: dict[str, str]
    task: str


class Detected(NamedTuple):
    format: Format
    columns: dict[str, str]
    """The column of each field."""
    notices: tuple[str, ...]


def formats(task: str | None = None) -> list[Format]:
    """Return all formats, or those of a task."""
    return [each for each in discover("studio.backend.data.formats", "FORMAT") if task in (None, each.task)]


class UnknownColumns(StudioError):
    """No format fits the columns; `columns` is a guess for the format `format`, empty if there is none."""

    def __init__(self, sentence: str, format: str = "", columns: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.format, self.columns = format, columns or {}


def detect(path: Path, probed: list[Row | BadRow], settings: Wanted) -> Detected:
    """Detect the format by the first rows.

    Raises:
        UnknownColumns: no format fits.
        StudioError: no row is good, or a chosen column is missing.
    """
    names = names_of(path, probed)
    rows = [row for row in probed if isinstance(row, Row)]
    if missing := [name for name in settings.columns.values() if name not in names]:
        raise StudioError(f"{path.name} has no column {_listed(missing)}. Choose from {_listed(names)}.")
    if settings.format == "auto" and not settings.columns and _is_turn_table(names, rows):
        raise StudioError(
            f"Each row of {path.name} is a message, not a conversation. Write a row for each conversation, with a "
            'column messages that holds the list of its messages: [{"role": ..., "content": ...}, ...].'
        )
    unread: list[str] = []
    for format in formats(settings.task):
        columns = format.locate(names, settings.columns) if settings.format in ("auto", format.name) else None
        if columns is None:
            continue
        if settings.format != "auto" or any(format.fits(format.cells(row.cells, columns)) for row in rows):
            return Detected(format, columns, _notices(format, columns, names, rows, settings))
        unread += _reason(format, columns, rows)
    raise _no_format(path, names, rows, settings, unread)


def _notices(
    format: Format, columns: dict[str, str], names: list[str], rows: list[Row], settings: Wanted
) -> tuple[str, ...]:
    """Return what a person should know of a reading; first what changes the training."""
    notices = [format.notice] if format.notice else []
    guesses = [
        f"{field} is read from {column!r}"
        for field, column in columns.items()
        if column.strip().lower() in format.guessed and field not in settings.columns
    ]
    if guesses:
        notices.append(f"A guess from the column names: {', '.join(guesses)}. If it is wrong, choose the columns.")
    keys: set[str] = set().union(*(format.unused_keys(format.cells(row.cells, columns)) for row in rows))
    if keys:
        notices.append(f"Unused keys of the messages: {_listed(sorted(keys))}.")
    unused = [name for name in names if name not in columns.values()]
    if unused:
        notices.append(f"Unused columns: {_listed(unused)}.")
    return tuple(notices)


def _is_turn_table(names: list[str], rows: list[Row]) -> bool:
    """Return whether the rows are messages, one by one."""
    known = {name.strip().lower(): name for name in names}
    role = next((known[key] for key, text in (("role", "content"), ("from", "value")) if {key, text} <= set(known)), "")
    return bool(role) and all(str(row.cells.get(role)).lower() in (*ROLES, *TOOL_ROLES) for row in rows)


def _reason(format: Format, columns: dict[str, str], rows: list[Row]) -> list[str]:
    """Return why the first row is not of this format."""
    try:
        format.convert(rows[0].cells, columns)
    except Problem as problem:
        return [str(BadRow(rows[0].line, *problem.args))]
    return []


def names_of(path: Path, probed: list[Row | BadRow]) -> list[str]:
    """Return the column names of the first rows. Raise StudioError if none is good."""
    rows = [row.cells for row in probed if isinstance(row, Row)]
    if not rows:
        raise no_good_row(path, [row for row in probed if isinstance(row, BadRow)])
    return list(dict.fromkeys(chain(*rows)))


def no_good_row(path: Path, bad_rows: list[BadRow]) -> StudioError:
    return StudioError(f"{path.name} has no good row.\n{first_of(bad_rows)}")


def first_of(bad_rows: list[BadRow]) -> str:
    """Return the first bad rows, one on each line."""
    left = len(bad_rows) - SHOWN_BAD_ROWS
    return "\n".join([*map(str, bad_rows[:SHOWN_BAD_ROWS]), *([f"... and {left:,} more"] if left > 0 else [])])


def _no_format(path: Path, names: list[str], rows: list[Row], settings: Wanted, unread: list[str]) -> StudioError:
    if unread:
        return StudioError(f"The rows of {path.name} can't be read as training data. {unread[0]}")
    known = [f"{each.name} ({each.help})" for each in formats(settings.task) if settings.format in ("auto", each.name)]
    such = "{text: Review, label: Stars}" if settings.task == "classify" else "{prompt: Question, completion: Answer}"
    format, columns = guess(names, rows, settings.task)
    return UnknownColumns(
        f"The columns of {path.name} ({_listed(names)}) don't match {' or '.join(known)}. Rename them, or choose the "
        f"column of each field, as in columns={such}.",
        *((format, columns) if settings.format in ("auto", format) and not settings.columns else ()),
    )


def guess(names: list[str], rows: list[Row], task: str) -> tuple[str, dict[str, str]]:
    """Return (format, columns) for unknown columns: the longest texts are answers, or the texts to classify.

    The columns are empty if there are fewer than two columns of text.
    """
    cells = [row.cells for row in rows]
    distinct = {name: len({str(row[name]) for row in cells if row.get(name) not in (None, "")}) for name in names}
    lengths = text_lengths(names, cells)
    if not lengths or len(names) < 2:
        return ("labelled" if task == "classify" else "prompt_completion"), {}
    longest = max(lengths, key=lambda name: lengths[name])
    if task == "classify":
        others = [name for name in names if name != longest]
        return "labelled", {
            "text": longest,
            "label": min(others, key=lambda name: (distinct[name] < 2, distinct[name])),
        }
    others = [name for name in lengths if name != longest]
    if not others:
        return "prompt_completion", {}
    prompt = max(others, key=lambda name: lengths[name])
    pair = sorted((prompt, longest), key=names.index)  # a question usually stands before its answer
    return "prompt_completion", {"prompt": pair[0], "completion": pair[1]}


def text_lengths(names: list[str], rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean length of the texts of each column, without empty columns and those of numbers."""
    lengths: dict[str, float] = {}
    for name in names:
        texts = [cell for row in rows if isinstance(cell := row.get(name), str) and cell.strip()]
        if texts and not all(text.strip().lstrip("-").replace(".", "", 1).isdigit() for text in texts):
            lengths[name] = sum(map(len, texts)) / len(texts)
    return lengths


def _listed(names: list[str]) -> str:
    shown = [repr(name[:40]) for name in names[:12]]
    return ", ".join(shown) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
