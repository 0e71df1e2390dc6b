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
from studio.backend.data.turns import ROLES, TOOL_ROLES, turns
from studio.errors import StudioError
from studio.registry import discover

SHOWN_BAD_ROWS = 20
PROMPTS = ("prompt", "question", "query", "input", "instruction")
"""Names of the column that holds what preferences answer."""
GUESSED = "The column names don't tell what is trained, so the columns are a guess. Check them, and the first rows."


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
    """No format fits the columns; `columns` is a guess for the format `format`, empty if there is none.

    `assumption` is what a page shows about the guess.
    """

    def __init__(
        self, sentence: str, format: str = "", columns: dict[str, str] | None = None, assumption: str = GUESSED
    ) -> None:
        super().__init__(sentence)
        self.format, self.columns, self.assumption = format, columns or {}, assumption


def detect(path: Path, probed: list[Row | BadRow], settings: Wanted) -> Detected:
    """Detect the format by the first rows.

    Raises:
        UnknownColumns: no format fits.
        StudioError: no row is good, or a chosen column is missing.
    """
    names = names_of(path, probed)
    rows = [row for row in probed if isinstance(row, Row)]
    if missing := [name for name in settings.columns.values() if name not in names]:
        raise StudioError(f"{path.name} has no column {listed(missing)}. Choose from {listed(names)}.")
    if settings.format == "auto" and not settings.columns:
        _refuse_turn_table(path, names, rows)
        if settings.task == "chat":
            _refuse_preferences(path, names, rows)
    tried = []
    for format in formats(settings.task):
        columns = format.locate(names, settings.columns) if settings.format in ("auto", format.name) else None
        if columns is None:
            continue
        if settings.format != "auto" or any(format.fits(format.cells(row.cells, columns)) for row in rows):
            notices = [format.notice] if format.notice else []
            return Detected(format, columns, (*notices, *guess_notice(format, columns, settings)))
        if format.explains:
            tried.append((format, columns))
    raise _no_format(path, names, rows, settings, _reasons(tried, rows[0]))


def guess_notice(format: Format, columns: dict[str, str], settings: Wanted) -> list[str]:
    """Return a sentence about the fields whose column is a guess, if there are any."""
    guesses = [
        f"{field} is read from {column!r}"
        for field, column in columns.items()
        if column.strip().lower() in format.guessed and field not in settings.columns
    ]
    if not guesses:
        return []
    return [f"A guess from the column names: {', '.join(guesses)}. If it is wrong, choose the columns."]


def _refuse_turn_table(path: Path, names: list[str], rows: list[Row]) -> None:
    """Raise StudioError if the rows are messages, one by one."""
    known = {name.strip().lower(): name for name in names}
    role = next((known[key] for key, text in (("role", "content"), ("from", "value")) if {key, text} <= set(known)), "")
    if role and all(str(row.cells.get(role)).lower() in (*ROLES, *TOOL_ROLES) for row in rows):
        raise StudioError(
            f"Each row of {path.name} is a message, not a conversation. Write a row for each conversation, with a "
            'column messages that holds the list of its messages: [{"role": ..., "content": ...}, ...].'
        )


def _refuse_preferences(path: Path, names: list[str], rows: list[Row]) -> None:
    """Raise UnknownColumns for pairs of a chosen and a rejected answer: only the chosen one can be trained."""
    known = {name.strip().lower(): name for name in names}
    if not {"chosen", "rejected"} <= known.keys():
        return
    chosen = known["chosen"]
    prompt = next((known[name] for name in PROMPTS if name in known), "")
    whole = any(_first_role(row.cells.get(chosen)) in ("user", "system") for row in rows)
    columns = {"messages": chosen} if whole else {"prompt": prompt, "completion": chosen} if prompt else {}
    fields = ", ".join(f"{field}: {column}" for field, column in columns.items())
    remedy = f"map them: columns={{{fields}}}" if fields else "write them as a column of lists of messages"
    held = f"{path.name} holds preferences: a chosen and a rejected answer for each prompt."
    raise UnknownColumns(
        f"{held} Preferences can't be trained. To train on the chosen answers, {remedy}.",
        "messages" if whole else "prompt_completion",
        columns,
        f"{held} The chosen answers are trained, and the rejected ones are not used.",
    )


def _first_role(cell: Any) -> str:
    """Return the role of the first message in a cell; empty if it holds no messages."""
    try:
        found = turns({"messages": cell}, "messages")
    except Problem:
        return ""
    return ROLES.get(str(found[0].get("role")).lower(), "") if found else ""


def _reasons(tried: list[tuple[Format, dict[str, str]]], row: Row) -> list[str]:
    """Return why a row is of none of these formats; first what it looks like."""
    reasons = []
    for read in (Format.check_row, Format.convert):
        for format, columns in tried:
            try:
                read(format, row.cells, columns)
            except Problem as problem:
                reasons.append(str(BadRow(row.line, *problem.args)))
    return reasons


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
        f"The columns of {path.name} ({listed(names)}) don't match {' or '.join(known)}. Rename them, or choose the "
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


def listed(names: list[str]) -> str:
    shown = [repr(name[:40]) for name in names[:12]]
    return ", ".join(shown) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
