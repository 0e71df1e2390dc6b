"""HTML cards that show results: figures, notes and problems.

gr.HTML(card("Data", figures([("407", "rows")]) + note("Two columns are not used.")))

`text` arguments are escaped; `html` is inserted as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


def card(name: str, html: str) -> str:
    return f'<section class="dp-card" aria-label="{escape(name)}">{html}</section>'


def waiting(name: str, text: str, busy: bool = False) -> str:
    """Return a card without results: a progress message, or a hint about what to do."""
    return card(name, f'<p class="{"dp-busy" if busy else "dp-empty"}" role="status">{escape(text)}</p>')


def note(text: str) -> str:
    return f'<p class="dp-note">{escape(text)}</p>'


def problem(text: str) -> str:
    return f'<p class="dp-problem" role="alert">{escape(text)}</p>'


def figures(pairs: Iterable[tuple[str, str]]) -> str:
    """Return a list of (value, description) pairs."""
    terms = "".join(f"<div><dd>{escape(value)}</dd><dt>{escape(name)}</dt></div>" for value, name in pairs)
    return f'<dl class="dp-figures">{terms}</dl>'
