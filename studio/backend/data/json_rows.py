"""Read the rows of json and jsonl files, in the layouts that other programs write.

A .json file holds a list of rows, a list under a key, a column for each key (as `DataFrame.to_json` writes it), objects
one after another, or a single conversation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

from studio.backend.data.file_type import FileType
from studio.backend.data.json_items import json_items, json_values
from studio.backend.data.row import DEPTH, BadRow, Limits, Lines, Problem, Read, Row, too_deep, too_long
from studio.errors import StudioError

BLOCK = 1 << 16
DOCUMENT = 64 << 20
"""Most characters of a document that is parsed as a whole."""
TURNS = ("messages", "conversations", "conversation")
TURN_KEYS = ({"role", "content"}, {"from", "value"})
LISTED = re.compile(r'\s*\[|\s*\{\s*(?:"[^"]*"\s*:\s*(?:"(?:[^"\\]|\\.)*"|[\w.+-]+)\s*,\s*)*"([^"]*)"\s*:\s*\[\s*\{')
"""The beginning of a list of rows, or of an object whose first list, under the key that is the group, holds objects."""
SPLIT = {"columns", "data"}


def json_lines(file: TextIO, limits: Limits, file_type: FileType, notices: list[str]) -> Read:
    lines = Lines(file, limits)
    for text in lines:
        if text.strip():
            yield _json_row(lines.number, text, limits)


def json_file(file: TextIO, limits: Limits, file_type: FileType, notices: list[str]) -> Read | list[Row]:
    """Return the rows of a .json file, as a list if it is parsed as a whole. Raise StudioError if it holds none."""
    head = file.read(BLOCK)
    file.seek(0)
    listed = LISTED.match(head)
    if _holds_several(head):
        notices.append("The file holds JSON objects one after another. Each was read as a row.")
        return _parsed(json_values(file, limits.line_characters), limits)
    if listed and listed[1] not in TURNS:
        return _joined(_parsed(json_items(file, limits.line_characters), limits), notices)
    return _document_rows(_document(file, limits), notices)


def is_turn(value: Any) -> bool:
    """Return whether a value is a message of a conversation."""
    return isinstance(value, dict) and any(keys <= set(value) for keys in TURN_KEYS)


def _holds_several(head: str) -> bool:
    text = head.lstrip()
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return text[end:].lstrip()[:1] in ("{", "[")


def _parsed(items: Iterator[tuple[int, str]], limits: Limits) -> Read:
    for number, (line, text) in enumerate(items, start=1):
        yield _json_row(number if line == 1 else line, text, limits)


def _joined(rows: Read, notices: list[str]) -> Read:
    """Yield the rows; messages that are the items of the whole file become one conversation."""
    first = next(rows, None)
    if isinstance(first, Row) and is_turn(first.cells):
        turns = [first, *rows]  # also an item that is no message, so that the conversation is refused with its number
        yield from (row for row in turns if isinstance(row, BadRow))
        notices.append("The file is a list of messages. It was read as one conversation.")
        yield Row(1, {"messages": [row.cells for row in turns if isinstance(row, Row)]})
    elif first is not None:
        yield first
        yield from rows


def _json_row(line: int, text: str, limits: Limits) -> Row | BadRow:
    try:
        if len(text) > limits.line_characters:
            raise too_long(limits)
        cells = parse_json(text, limits.depth)
        if isinstance(cells, list) and cells and is_turn(cells[0]):
            cells = {"messages": cells}
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
    if text.count("[") + text.count("{") > depth and nesting(text) > depth:
        raise too_deep("", depth)
    try:
        return json.loads(text, object_pairs_hook=_object)
    except ValueError as error:
        raise Problem("", f"is not valid JSON ({error})", "Correct it there.") from error


def nesting(text: str) -> int:
    """Return the depth of brackets outside of quotes."""
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


# --- a document that is parsed as a whole


def _document(file: TextIO, limits: Limits) -> Any:
    text = file.read(DOCUMENT + 1)
    if len(text) > DOCUMENT:
        raise StudioError("The JSON file is too large for its layout. Write one row on each line, as in a .jsonl file.")
    try:
        return parse_json(text, limits.depth)
    except Problem as problem:
        raise StudioError(f"The JSON file holds no lists of rows that can be read: it {problem}") from problem


def _document_rows(document: Any, notices: list[str]) -> list[Row]:
    """Return the rows of a conversation, of columns, or of the only list of objects in an object."""
    if not isinstance(document, dict):
        raise _no_rows("no")
    lists = [value for value in document.values() if _holds_objects(value)]
    if len(lists) == 1 and is_turn(lists[0][0]):
        notices.append("The file is one conversation.")
        found = [document]
    elif lists:
        if len(lists) > 1:
            raise _no_rows(str(len(lists)))
        found = lists[0]
    elif document and not any(isinstance(value, (list, dict)) for value in document.values()):
        notices.append("The file is a single object. It was read as one row.")
        found = [document]
    else:
        found = _from_columns(document)
        notices.append(f"The file holds columns. {len(found):,} rows were made of them.")
    return [Row(number, cells) for number, cells in enumerate(found, start=1)]


def _holds_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _from_columns(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of one of the layouts of `DataFrame.to_json`, or of lists of the same length."""
    values = list(document.values())
    if set(document) >= SPLIT and all(isinstance(document[key], list) for key in SPLIT):
        names = [str(name) for name in document["columns"]]
        if all(isinstance(row, list) and len(row) == len(names) for row in document["data"]):
            return [dict(zip(names, row, strict=True)) for row in document["data"]]
    if values and all(isinstance(value, dict) and set(value) == set(values[0]) for value in values):
        if all(key.isdigit() for key in document):
            return values
        return [{name: column[key] for name, column in document.items()} for key in values[0]]
    if values and all(isinstance(value, list) and len(value) == len(values[0]) for value in values):
        return [dict(zip(document, row, strict=True)) for row in zip(*values, strict=True)]
    raise _no_rows("no")


def _no_rows(count: str) -> StudioError:
    return StudioError(f"The JSON file holds {count} lists of rows. Write it as one: [{{...}}, {{...}}].")
