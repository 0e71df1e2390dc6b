"""The result of `train --dry-run` as HTML: trained parts, precision, memory and time.

gr.HTML(shown(report))
"""

from __future__ import annotations

import math
from html import escape
from typing import Any

from studio.backend.data.preview import Preview
from studio.backend.recipe import Recipe
from studio.backend.system import zero_gpu
from studio.backend.training.audit import duration
from studio.ui.common.card import card, figures, note

NAME = "Run check"
LENT = (
    "This is arithmetic: the Space has no GPU until the run starts, so nothing was measured. A run that does not fit "
    "into the GPU's memory ends with a message, and its settings can be changed."
)
HEAD = ("part", "parameters", "trained", "share", "rank", "dtype", "4-bit")


def shown(report: dict[str, Any], beside: str = "") -> str:
    """Return the report as HTML; `beside` is a note about other work during the measurement."""
    notes = [*([beside] if beside else []), *report["warnings"]]
    html = (
        f'<h3>Trained parts</h3><div class="dp-scroll" tabindex="0"><table><thead><tr>{_head()}</tr></thead><tbody>'
        f"{''.join(map(_row, report['rows']))}</tbody></table></div>"
        f"{figures(_forecast(report['forecast']))}{''.join(map(note, notes))}"
    )
    return card(NAME, html)


def lent(seen: Preview, recipe: Recipe) -> str:
    """Return what is known of a run before a GPU is lent for it, as HTML."""
    from studio.backend.training.zero_gpu_slices import RESERVE_S, SLICE_S  # late, because it imports all of training

    quota_s = (SLICE_S + RESERVE_S) * zero_gpu.DEAREST
    batch = recipe.batch_size * recipe.gradient_accumulation
    steps = recipe.max_steps or math.ceil(math.ceil(_inputs(seen, recipe) / batch) * recipe.epochs)
    stepping = [
        (f"{steps:,}", f"steps of up to {batch:,} rows"),
        (f"{batch * recipe.max_length:,}", "tokens in a step, at most"),
    ]
    known = [
        (f"{seen.train_rows:,}", "rows to train on"),
        *(stepping if recipe.method == "lora" else []),
        (f"{quota_s:.0f} s", f"of your GPU quota, at most, for {SLICE_S:.0f} s of training"),
    ]
    return card(NAME, figures(known) + note(LENT))


def _inputs(seen: Preview, recipe: Recipe) -> int:
    """Return the number of rows, or an estimate of the packs that hold them."""
    if not recipe.packing or seen.tokens is None or recipe.task == "classify":
        return seen.train_rows
    read = max(1, sum(seen.tokens.counts) - seen.tokens.untrained)
    return math.ceil(seen.train_rows * seen.tokens.tokens / read / recipe.max_length)


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
    shown = [(f"{forecast['memory_gib']:.1f} GiB", f"memory, {forecast['free_gib']:.1f} GiB free")]
    if forecast["reading_s"]:
        shown += [(duration(forecast["reading_s"]), "to read the rows once, before the head is fitted")]
    if forecast["steps"]:
        shown += [
            (duration(forecast["seconds"]), f"for {forecast['steps']:,} steps, without evaluations"),
            (f"{forecast['passes']:.1f}", "passes over the rows"),
            (f"{forecast['step_s']:.2f} s", "per step"),
            (f"{forecast['tok_s']:,.0f}", "tokens per second"),
        ]
    return shown
