"""Stream the rows of a JSON document, so that a large file is never held in memory.

    for line, text in json_items(file, longest=1_000_000):   # of '[{...}, {...}]' or '{"data": [{...}, {...}]}'
        json.loads(text)
    json_values(file, longest=1_000_000)                     # of '{...} {...}', objects one after another

The scanner looks only at brackets, quotes and commas. The caller parses the rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TextIO

from studio.errors import StudioError

BLOCK = 1 << 16
STEP = {"[": 1, "{": 1, "]": -1, "}": -1}


def json_items(file: TextIO, longest: int) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of each item of the only list in a document.

    Items longer than `longest` characters are cut after `longest` + 1.

    Raises:
        StudioError: there is no list, more than one, or the file ends inside it.
    """
    item, outer = Item(1, longest), ""
    depth = inside = lists = 0  # `inside` is the depth of the list while it is open
    for text, mark, line in _pieces(file):
        item.add(text)
        if inside and depth == inside and mark in (",", "]", "}"):
            if mark == "," or item.text.strip():
                yield item.line, item.text
            item = Item(line, longest)
            inside = inside if mark == "," else 0
        else:
            item.add(mark)
        depth += STEP.get(mark, 0)
        outer = outer or mark
        if mark == "[" and not inside and depth == (1 if outer == "[" else 2):
            item, inside, lists = Item(line, longest), depth, lists + 1
    if inside:
        raise StudioError(f"The row that begins on line {item.line} never ends: close its quotes and brackets.")
    if lists != 1:
        raise StudioError(f"The JSON file holds {lists or 'no'} lists of rows. Write it as one: [{{...}}, {{...}}].")


def json_values(file: TextIO, longest: int) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of each value of a document that holds several, cut as in `json_items`.

    Raises:
        StudioError: the file ends inside a value.
    """
    item, depth = Item(1, longest), 0
    for text, mark, line in _pieces(file):
        item.add(text)
        item.add(mark)
        depth += STEP.get(mark, 0)
        if depth == 0 and mark in ("}", "]"):
            yield item.line, item.text
            item = Item(line, longest)
    if item.text.strip():
        raise StudioError(f"The row that begins on line {item.line} never ends: close its quotes and brackets.")


class Item:
    def __init__(self, line: int, longest: int) -> None:
        self.first_line = line
        self.room = longest + 1
        self.parts: list[str] = []

    def add(self, text: str) -> None:
        if self.room and text:
            self.parts.append(text[: self.room])
            self.room -= len(self.parts[-1])

    @property
    def text(self) -> str:
        self.parts = ["".join(self.parts)]
        return self.parts[0]

    @property
    def line(self) -> int:
        blank = len(self.text) - len(self.text.lstrip())
        return self.first_line + self.text.count("\n", 0, blank)


def _pieces(file: TextIO) -> Iterator[tuple[str, str, int]]:
    """Yield (text, the bracket or comma after it, line), ignoring quoted ones. The mark is "" at the end of a block."""
    line, quoted, escaped = 1, False, -1
    while block := file.read(BLOCK):
        begin = 0
        for match in re.finditer(r'["\\\[\]{},\n]', block):
            at, mark = match.start(), match[0]
            if mark == "\n":
                line += 1
            elif at == escaped:
                continue
            elif mark == "\\":
                escaped = at + 1
            elif mark == '"':
                quoted = not quoted
            elif not quoted:
                yield block[begin:at], mark, line
                begin = at + 1
        yield block[begin:], "", line
        escaped -= len(block)
