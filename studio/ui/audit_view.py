"""What `train --dry-run` found, as HTML: what will train, how it is held, and what it will take.

gr.HTML(shown(report))
"""

from __future__ import annotations

from html import escape
from typing import Any

from studio.backend.audit import duration

HEAD = ("part", "parameters", "trained", "share", "rank", "loaded as", "4-bit")


def shown(report: dict[str, Any], note: str = "") -> str:
    forecast = report["forecast"]
    notes = [*([note] if note else []), *report["warnings"]]
    return (
        '<section class="dp-card" aria-label="Check of the run"><h3>What will train</h3>'
        f'<div class="dp-scroll" tabindex="0"><table><thead><tr>{_head()}</tr></thead><tbody>'
        f"{''.join(map(_row, report['rows']))}</tbody></table></div>"
        f'<dl class="dp-figures">{_figures(forecast)}</dl>'
        f"{''.join(map(_note, notes))}</section>"
    )


def waiting(text: str, busy: bool = True) -> str:
    state = "dp-busy" if busy else "dp-empty"
    return f'<section class="dp-card" role="status"><p class="{state}">{escape(text)}</p></section>'


def _note(text: str) -> str:
    return f'<p class="dp-note">{escape(text)}</p>'


def _head() -> str:
    return "".join(f'<th scope="col">{name}</th>' for name in HEAD)


def _row(row: dict[str, Any]) -> str:
    cells = [
        f"{row['parameters']:,}", f"{row['trained']:,}", f"{row['share']:.1%}", str(row["rank"] or "–"),
        escape(str(row["dtype"])), f"{row['four_bit']:.0%}",
    ]  # fmt: skip
    frozen = "" if row["trained"] else ' class="dp-frozen"'
    return f'<tr{frozen}><th scope="row">{escape(row["part"])}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _figures(forecast: dict[str, float]) -> str:
    figures = [
        (f"{forecast['memory_gib']:.1f} GiB", f"memory, of {forecast['free_gib']:.1f} free"),
        (duration(forecast["seconds"]), f"for {forecast['steps']:,} steps, evaluations not counted"),
        (f"{forecast['step_s']:.2f} s", "a step"),
        (f"{forecast['tok_s']:,.0f}", "tokens a second"),
    ]
    return "".join(f"<div><dd>{escape(value)}</dd><dt>{escape(name)}</dt></div>" for value, name in figures)
