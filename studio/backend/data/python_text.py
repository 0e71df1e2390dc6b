"""Parse lists and objects that pandas wrote into a text cell: as JSON, as Python's repr, or as NumPy prints an array.

parse_list('[{"role": "user"}]', "messages")       # JSON
parse_list("[{'role': 'user'}]", "messages")       # df.to_csv() of a column of lists
parse_list("[{'role': 'user'}\n {'role': ...}]")   # df.to_csv() of a column that came from parquet
"""

from __future__ import annotations

import ast
import re
from typing import Any

from studio.backend.data.json_rows import parse_json
from studio.backend.data.row import DEPTH, Limits, Problem, check_cell, too_deep

QUOTED = r"""'(?:[^'\\]|\\.)*+'?|"(?:[^"\\]|\\.)*+"?"""
"""A text with its quotes; one that is never closed goes to the end, so that no later quote starts the search again."""
BRACKETS = re.compile(rf"{QUOTED}|[\[\]{{}}()]", re.S)
GAP = re.compile(rf"({QUOTED})|(?<=[}}\]'\"\w])\s+(?=[{{\['\"\w])", re.S)
"""A quoted text, or the blanks between the items of an array, which NumPy prints without commas."""
ARRAY = re.compile(r"array\(|(?:,\s*)?dtype=\w+\)")
LIMITS = Limits()
REMEDY = "Save the file as JSON lines: df.to_json(path, orient='records', lines=True)."


def parse_list(text: str, key: str) -> Any:
    """Return the list or the object in a text.

    Raises:
        Problem: the text is neither JSON nor Python, or holds what no cell may hold, such as half an emoji that
            was escaped.
    """
    found = _parsed(text, key)
    check_cell(key, found, LIMITS)
    return found


def _parsed(text: str, key: str) -> Any:
    try:
        return parse_json(text)
    except Problem as problem:
        if problem.reason.startswith("is nested") or not text.lstrip().startswith(("[", "array(", "{")):
            raise Problem(key, problem.reason, problem.remedy) from None
        reason = problem.reason
    found = _python(text, key)
    if found is None:
        looks = "looks like a Python list that is not complete" if "'" in text else reason
        raise Problem(key, looks, REMEDY if "'" in text else "Correct it there.")
    return found


def _python(text: str, key: str) -> Any:
    """Return the value of a Python or NumPy list, or None if it can't be read."""
    depth = deepest = 0
    for mark in BRACKETS.findall(text):
        depth += (mark in "[{(") - (mark in "]})")
        deepest = max(deepest, depth)
    if deepest > DEPTH:
        raise too_deep(key, DEPTH)
    for candidate in (text, GAP.sub(lambda match: match[1] or ", ", _outside(ARRAY, text))):
        try:
            return ast.literal_eval(candidate.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return None


def _outside(pattern: re.Pattern[str], text: str) -> str:
    """Delete a pattern outside of quoted texts."""
    return re.sub(rf"({QUOTED})|{pattern.pattern}", lambda match: match[1] or "", text, flags=re.S)
