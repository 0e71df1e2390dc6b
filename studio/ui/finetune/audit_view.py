"""What `train --dry-run` found, as HTML: what will train, how it is held, and what it will take.

gr.HTML(shown(report))
"""

from __future__ import annotations

from html import escape
from typing import Any

from studio.backend.training.audit import duration
from studio.ui.common.card import card, figures, note

NAME = "Check of the run"
HEAD = ("part", "parameters", "trained", "share", "rank", "loaded as", "4-bit")


def shown(report: dict[str, Any], beside: str = "") -> str:
    """`beside` says what else went on while it was measured."""
    notes = [*([beside] if beside else []), *report["warnings"]]
    html = (
        f'<h3>What will train</h3><div class="dp-scroll" tabindex="0"><table><thead><tr>{_head()}</tr></thead><tbody>'
        f"{''.join(map(_row, report['rows']))}</tbody></table></div>"
        f"{figures(_forecast(report['forecast']))}{''.join(map(note, notes))}"
    )
    return card(NAME, html)


def _head() -> str:
    return "".join(f'<th scope="col">{name}</th>' for name in HEAD)


def _row(row: dict[str, Any]) -> str:
    cells = [
        f"{row['parameters']:,}", f"{row['trained']:,}", f"{row['share']:.1%}", str(row["rank"] or "–"),
        escape(str(row["dtype"])), f"{row['four_bit']:.0%}",
    ]  # fmt: skip
    frozen = "" if row["trained"] else ' class="dp-frozen"'
    return f'<tr{frozen}><th scope="row">{escape(row["part"])}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _forecast(forecast: dict[str, float]) -> list[tuple[str, str]]:
    return [
        (f"{forecast['memory_gib']:.1f} GiB", f"memory, of {forecast['free_gib']:.1f} free"),
        (duration(forecast["seconds"]), f"for {forecast['steps']:,} steps, evaluations not counted"),
        (f"{forecast['step_s']:.2f} s", "a step"),
        (f"{forecast['tok_s']:,.0f}", "tokens a second"),
    ]
