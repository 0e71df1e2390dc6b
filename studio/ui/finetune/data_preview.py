"""Training data as HTML: counts, rows with the trained text marked, lengths and bad rows.

gr.HTML(shown(preview(recipe)))
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from studio.backend.data.preview import Preview
from studio.backend.data.rendering import Span, Summary
from studio.ui.common.card import card, figures, note
from studio.ui.common.card import problem as card_problem
from studio.ui.common.card import waiting as card_waiting

NAME = "Data preview"
SHOWN_TEXT = 1500
"""Characters of a span; longer spans are truncated in the middle."""
SHOWN_COLUMNS, SHOWN_CELL = 12, 200
"""Columns, and characters of a cell, in the table of raw rows."""


def shown(seen: Preview) -> str:
    """Return the preview as HTML. All text from the file is escaped."""
    if seen.problem:
        return card(NAME, f"{card_problem(seen.problem)}{_raw(seen)}")
    parts = [
        _figures(seen),
        "".join(map(note, seen.notices)),
        _lengths(seen.tokens) if seen.tokens else "",
        _examples(seen.examples),
        _raw(seen) if seen.raw else "",
        _bad_rows(seen),
    ]
    return card(NAME, "".join(parts))


def waiting(text: str = "Choose a sample or upload a file to see its rows here.") -> str:
    return card_waiting(NAME, text)


def _figures(seen: Preview) -> str:
    tokens = seen.tokens
    about, of_part = ("about ", " in the first rows") if seen.is_part else ("", "")
    pairs = [
        (f"{about}{seen.rows:,}", "usable rows"),
        (f"{about}{seen.train_rows:,}", "training rows"),
        (f"{about}{seen.held_out_rows:,}", "held-out rows"),
        (f"{seen.duplicates:,}", f"duplicates{of_part}"),
        (f"{seen.bad_count:,}", f"bad rows{of_part}"),
    ]
    if tokens:
        pairs += [
            (f"{tokens.trained_tokens:,}", f"of {tokens.tokens:,} tokens trained{of_part}"),
            (f"{tokens.cut:,}", f"truncated{of_part}"),
        ]
    columns = ", ".join(f"{escape(key)} from “{escape(column[:60])}”" for key, column in seen.columns.items())
    return f"<h3>{escape(seen.file)} <small>read as {escape(seen.format)}: {columns}</small></h3>{figures(pairs)}"


def _lengths(tokens: Summary) -> str:
    """Return a histogram, and the same numbers as a table."""
    bins = list(zip(tokens.edges, tokens.edges[1:], tokens.counts, strict=False))
    most = max(tokens.counts, default=0) or 1
    bars = "".join(
        f'<i style="height:{max(100 * count / most, 1 if count else 0):.1f}%" title="{low} to {high - 1} tokens: '
        f'{count:,} rows"></i>'
        for low, high, count in bins
    )
    rows = _rows([f"{low} to {high - 1}", f"{count:,}"] for low, high, count in bins if count)
    return (
        f'<h4>Row length in tokens</h4><div class="dp-bars" aria-hidden="true">{bars}</div>'
        f'<div class="dp-axis" aria-hidden="true"><span>{tokens.edges[0]}</span>'
        f"<span>{tokens.edges[-1] - 1}, the maximum length</span></div>{_table('Table', ['tokens', 'rows'], rows)}"
    )


def _examples(examples: Sequence[Sequence[Span]]) -> str:
    if not examples:
        return ""
    items = "".join(f"<li>{''.join(map(_span, spans))}</li>" for spans in examples)
    return (
        '<h4>First rows <small>as the model reads them; only <mark class="dp-trained">marked</mark> text is trained, '
        "and <b>bold</b> text is a control token"
        f'</small></h4><ol class="dp-rows" tabindex="0" aria-label="First rows">{items}</ol>'
    )


def _span(span: Span) -> str:
    text = span.text
    if len(text) > SHOWN_TEXT:
        text = f"{text[: SHOWN_TEXT // 2]} … {text[-SHOWN_TEXT // 2 :]}"
    shown = f"<b>{escape(text)}</b>" if span.control else escape(text)
    return f'<mark class="dp-trained">{shown}</mark>' if span.trained else f"<span>{shown}</span>"


def _bad_rows(seen: Preview) -> str:
    if not seen.bad_count:
        return ""
    rows = _rows(
        [str(bad.line), escape(bad.column[:60]), escape(bad.reason[:300]), escape(bad.remedy[:300])]
        for bad in seen.bad_rows
    )
    left = seen.bad_count - len(seen.bad_rows)
    more = f"<p>… and {left:,} more.</p>" if left > 0 else ""
    title = f"{seen.bad_count:,} bad rows, which are skipped"
    return _table(title, ["line", "column", "problem", "solution"], rows, opened=True) + more


def _raw(seen: Preview) -> str:
    """Return the first rows as they are in the file."""
    names = seen.names[:SHOWN_COLUMNS]
    rows = _rows([escape(str(cell)[:SHOWN_CELL]) for cell in map(row.get, names)] for row in seen.raw)
    return _table(f"First rows of {escape(seen.file)}, as they are in the file", map(escape, names), rows, opened=True)


def _rows(rows: Iterable[Sequence[str]]) -> str:
    """Return table rows; the cells are HTML."""
    return "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)


def _table(title: str, head: Iterable[str], rows: str, opened: bool = False) -> str:
    columns = "".join(f'<th scope="col">{name}</th>' for name in head)
    return (
        f'<details class="dp-table"{" open" if opened else ""}><summary>{title}</summary><div class="dp-scroll" '
        f'tabindex="0"><table><thead><tr>{columns}</tr></thead><tbody>{rows}</tbody></table></div></details>'
    )
