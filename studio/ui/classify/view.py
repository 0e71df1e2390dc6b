"""Predictions as HTML: bars for one text, a table for several, and the progress of a file.

gr.HTML(shown([prediction]))
gr.HTML(progress(0.4, "40 of 100 rows", first_rows))

All text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from studio.backend.classification.files import FileReport
from studio.backend.classification.prediction import LabelledRow, Prediction
from studio.ui.common import card
from studio.ui.common.downloads import labelled_address

LABELS, FILE = "Predictions", "File predictions"
SHOWN_TEXT = 240
"""Characters of a text in a table; longer texts are truncated."""
SHOWN_LABELS = 20
HINT = "Enter a text to see how well each label fits."
FILE_HINT = "Upload a file to see its first rows with their labels here."
READY = "Classify the file to see its first rows with their labels here."


def waiting(text: str = HINT, busy: bool = False) -> str:
    return card.waiting(LABELS, text, busy)


def shown(predictions: Sequence[Prediction], state: str = "", notices: Sequence[str] = ()) -> str:
    """Return one text as bars, or several as a table.

    Args:
        state: a sentence about the progress.
        notices: sentences about all texts.
    """
    if not predictions:
        return waiting(state)
    status = f'<p class="cl-state" role="status">{escape(state)}</p>' if state else ""
    told = dict.fromkeys([*notices, *(notice for prediction in predictions for notice in prediction.notices)])
    what = _one(predictions[0]) if len(predictions) == 1 else _several(predictions)
    return card.card(LABELS, status + what + "".join(map(card.note, told)))


def progress(fraction: float, text: str, first: Sequence[LabelledRow]) -> str:
    done = max(0, min(100, round(100 * fraction)))
    bar = (
        '<span class="cl-bar" role="progressbar" aria-label="Classifying the file" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{done}"><i style="width:{done}%"></i></span>'
    )
    text = escape(text or "Reading the file …")
    return card.card(FILE, f'<p class="dp-busy">{text}</p>{bar}{_first_rows(first)}')


def ended(
    report: FileReport | None, problem: str, first: Sequence[LabelledRow], name: str, result: str, measured: str = ""
) -> str:
    """Return the result of a file with its download link, which needs at least one finished row.

    Args:
        problem: why the work ended early, without a report.
        measured: a sentence about the evaluation, or about why there is none.
    """
    parts = [card.problem(problem) if problem else ""]
    if report is not None:
        stopped = f"Stopped: {report.finished}" if report.cancelled else report.finished
        parts += [f'<h3 role="status">{escape(stopped)}</h3>', _counts(report), *map(card.note, report.notices)]
    parts += [f"<p>{escape(measured)}</p>" if measured else "", _download(name, result) if first else ""]
    parts += [_first_rows(first), _bad_rows(report) if report else ""]
    return card.card(FILE, "".join(parts))


def earlier(name: str, result: str) -> str:
    return card.card(FILE, f"<p>Classified earlier (may be incomplete):</p>{_download(name, result)}")


# --- texts


def _one(prediction: Prediction) -> str:
    if math.isnan(prediction.confidence):
        return f'<p class="cl-number"><b>{escape(prediction.label)}</b> {escape(next(iter(prediction.scores)))}</p>'
    chosen = f"{escape(prediction.label) or 'No label fits'} <small>{percent(prediction.confidence)}</small>"
    ranked = sorted(prediction.scores.items(), key=lambda pair: -pair[1])
    bars = _bars((label, share, percent(share)) for label, share in ranked)
    return f'<h3 class="cl-label" role="status" dir="auto">{chosen}</h3>{bars}'


def _bars(rows: Iterable[tuple[str, float, str]]) -> str:
    """Return bars from rows of (label, length of the bar, text after it)."""
    items = "".join(
        f'<li><span class="cl-name" dir="auto">{escape(label)}</span>{_bar(share)}<b>{figure}</b></li>'
        for label, share, figure in rows
    )
    return f'<ol class="cl-bars">{items}</ol>'


def _bar(share: float) -> str:
    width = 100 * max(0.0, min(1.0, share))
    return f'<span class="cl-bar" aria-hidden="true"><i style="width:{width:.1f}%"></i></span>'


def _several(predictions: Sequence[Prediction]) -> str:
    rows = [[cut(each.text), escape(each.label), _confidence(each)] for each in predictions]
    return table(["text", "label", "confidence"], rows, "Texts with labels")


# --- a file


def _first_rows(first: Sequence[LabelledRow]) -> str:
    if not first:
        return ""
    rows = table(["line", "text", "label", "confidence"], map(_row, first), "First rows with labels")
    return f"<h4>First rows</h4>{rows}"


def _row(row: LabelledRow) -> list[str]:
    if row.prediction is None:
        return [f"{row.line:,}", f'<span class="cl-bad">{cut(str(row.problem))}</span>', "–", ""]
    return [f"{row.line:,}", cut(row.prediction.text), escape(row.prediction.label), _confidence(row.prediction)]


def _counts(report: FileReport) -> str:
    """Return bars with the number of rows per label."""
    most = max(report.counts.values(), default=0)
    common = report.counts.most_common(SHOWN_LABELS)
    return _bars((label or "none", count / most, f"{count:,}") for label, count in common) if most else ""


def _bad_rows(report: FileReport) -> str:
    if not report.bad:
        return ""
    rows = [[f"{bad.line:,}", escape(bad.column[:60]), escape(bad.reason[:300]), escape(bad.remedy[:300])]
            for bad in report.bad_rows]  # fmt: skip
    more = f"<p>… and {report.bad - len(rows):,} more.</p>" if report.bad > len(rows) else ""
    title = f"Rows without readable text, which get no label: {report.bad:,}"
    listed = table(["line", "column", "problem", "solution"], rows, "Bad rows")
    return f'<details class="dp-table"><summary>{title}</summary>{listed}{more}</details>'


def _download(name: str, result: str) -> str:
    href = escape(labelled_address(result), quote=True)
    return f'<p><a class="dp-download" href="{href}" download>Download {escape(name)}</a></p>'


# --- pieces


def table(head: Sequence[str], rows: Iterable[Sequence[str]], name: str) -> str:
    """Return a table; the cells are HTML."""
    columns = "".join(f'<th scope="col">{title}</th>' for title in head)
    body = "".join("<tr>" + "".join(f'<td dir="auto">{cell}</td>' for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="dp-scroll cl-table" tabindex="0" role="region" aria-label="{name}"><table><thead><tr>{columns}'
        f"</tr></thead><tbody>{body}</tbody></table></div>"
    )


def cut(text: str) -> str:
    """Escape a text, and truncate it if it is long."""
    return escape(text if len(text) <= SHOWN_TEXT else f"{text[:SHOWN_TEXT]} …")


def _confidence(prediction: Prediction) -> str:
    return "" if math.isnan(prediction.confidence) else percent(prediction.confidence)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"
