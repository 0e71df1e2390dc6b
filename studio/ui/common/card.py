"""The pieces of HTML that tell what came of something: a card with figures, notes and what went wrong.

gr.HTML(card("The data", figures([("407", "rows")]) + note("Two columns are not used.")))

A `text` is escaped here; `html` is put in as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


def card(name: str, html: str) -> str:
    return f'<section class="dp-card" aria-label="{escape(name)}">{html}</section>'


def waiting(name: str, text: str, busy: bool = False) -> str:
    """A card without anything in it yet: what is being done, or what a person may do."""
    return card(name, f'<p class="{"dp-busy" if busy else "dp-empty"}" role="status">{escape(text)}</p>')


def note(text: str) -> str:
    return f'<p class="dp-note">{escape(text)}</p>'


def problem(text: str) -> str:
    return f'<p class="dp-problem" role="alert">{escape(text)}</p>'


def figures(pairs: Iterable[tuple[str, str]]) -> str:
    """Of (value, what it is)."""
    terms = "".join(f"<div><dd>{escape(value)}</dd><dt>{escape(name)}</dt></div>" for value, name in pairs)
    return f'<dl class="dp-figures">{terms}</dl>'
