"""The confusion matrix of a classifier, whose cells select the texts below it.

html = mistakes(report)

`data-shows` of a button selects the rows to show, and `data-caption` is their caption; see `evaluation.js`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Any

from studio.backend.classification.evaluation import Report
from studio.ui.classify.view import cut, percent
from studio.ui.common import card

TITLES = {
    "single_label": "Confusion matrix",
    "multi_label": "Label errors",
    "regression": "Largest errors",
}
WRONG, ALL = "wrong", "all"


def mistakes(report: Report) -> str:
    title = TITLES[report["problem"]]
    matrix = _matrix(report) if report.get("confusion") else ""
    return card.card(title, f"<h3>{title}</h3>{matrix}{_texts(report)}")


# --- the matrix


def _matrix(report: Report) -> str:
    labels, there = report["labels"], Counter(_place(each) for each in report["texts"])
    columns = "".join(f'<th scope="col" dir="auto">{escape(label)}</th>' for label in labels)
    rows = "".join(
        f'<tr><th scope="row" dir="auto">{escape(label)}</th>'
        + "".join(_cell(labels, true, found, count, sum(counts), there) for found, count in enumerate(counts))
        + "</tr>"
        for true, (label, counts) in enumerate(zip(labels, report["confusion"], strict=True))
    )
    return (
        "<p>Rows are true labels, columns are predicted labels. A stronger colour means a larger share of the row. "
        "Click a cell to show its texts below.</p>"
        '<div class="dp-scroll ev-matrix" tabindex="0" role="region" aria-label="True and predicted labels"><table>'
        f'<thead><tr><td></td><th scope="colgroup" colspan="{len(labels)}">predicted</th></tr>'
        f'<tr><th scope="col">true</th>{columns}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _cell(labels: Sequence[str], true: int, found: int, count: int, of_row: int, there: Counter[str]) -> str:
    right = ' class="ev-right"' if true == found else ""
    if not count:
        return f"<td{right}>0</td>"
    place = f"{true}-{found}"
    what = f"True {labels[true]}, predicted {labels[found]}: {_count(count)}"
    button = _button(place, f"{what}{_left_out(count, there[place])}", f"{count:,}", what)
    return f'<td{right} style="--share:{count / of_row:.3f}">{button}</td>'


def _button(shows: str, caption: str, text: str, name: str = "", pressed: bool = False) -> str:
    label = f' aria-label="{escape(name, quote=True)}"' if name else ""
    return (
        f'<button type="button" data-shows="{shows}" data-caption="{escape(caption, quote=True)}"{label} '
        f'aria-pressed="{str(pressed).lower()}">{escape(text)}</button>'
    )


# --- the texts


def _texts(report: Report) -> str:
    if report["problem"] == "regression":
        return _estimates(report)
    shown = report["texts"]
    if not shown:
        return ""
    wrong, left_out = sum(_is_wrong(each) for each in shown), report["texts_left_out"]
    all_wrong = _wrong(report)
    captions = {
        WRONG: f"Errors: {_count(all_wrong)}{_left_out(all_wrong, wrong)}",
        ALL: f"All: {_count(len(shown) + left_out)}{_left_out(len(shown) + left_out, len(shown))}",
    }
    choices = "".join(
        _button(shows, captions[shows], text, pressed=shows == WRONG)
        for shows, text in ((WRONG, "Errors"), (ALL, "All texts"))
    )
    rows = "".join(_row(report["labels"], each) for each in shown)
    return (
        f'<div class="ev-shows">{choices}</div><p class="ev-shown" role="status">{captions[WRONG]}</p>'
        f"{_table(('text', 'true', 'predicted', 'confidence'), rows)}"
    )


def _wrong(report: Report) -> int:
    """Return the number of wrong rows. The report's texts start with them, but may not contain all of them."""
    if report.get("confusion"):
        return sum(sum(row) for row in report["confusion"]) - sum(row[i] for i, row in enumerate(report["confusion"]))
    return round((1 - report["systems"][0]["accuracy"]) * report["rows"])


def _row(labels: Sequence[str], each: dict[str, Any]) -> str:
    wrong = _is_wrong(each)
    cells = [cut(each["text"]), *(escape(_named(labels, each[key])) for key in ("true", "found"))]
    cells.append("" if each["confidence"] is None else percent(each["confidence"]))
    attributes = f' data-place="{_place(each)}"' + (" data-wrong" if wrong else " hidden")
    return _line(cells, attributes)


def _estimates(report: Report) -> str:
    rows = "".join(
        _line([cut(each["text"]), *(f"{number:.4g}" for number in _of_number(each))]) for each in report["texts"]
    )
    shown = report["rows"] - report["texts_left_out"]
    caption = f"{_count(report['rows'])}{_left_out(report['rows'], shown)}"
    return f'<p class="ev-shown">{caption}</p>{_table(("text", "true", "predicted", "error"), rows)}'


def _of_number(each: dict[str, Any]) -> tuple[float, float, float]:
    return each["true"], each["found"], each["found"] - each["true"]


# --- pieces


def _table(head: Sequence[str], rows: str) -> str:
    columns = "".join(f'<th scope="col">{title}</th>' for title in head)
    return (
        f'<div class="dp-scroll cl-table ev-texts" tabindex="0" role="region" aria-label="Texts"><table><thead><tr>'
        f"{columns}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _line(cells: Sequence[str], attributes: str = "") -> str:
    return f"<tr{attributes}>" + "".join(f'<td dir="auto">{cell}</td>' for cell in cells) + "</tr>"


def _place(each: dict[str, Any]) -> str:
    """Return the cell of a text, or "" if texts may have several labels."""
    return f"{each['true']}-{each['found']}" if isinstance(each["true"], int) else ""


def _is_wrong(each: dict[str, Any]) -> bool:
    return bool(each["true"] != each["found"])


def _named(labels: Sequence[str], target: int | Sequence[int]) -> str:
    return ", ".join(labels[i] for i in ([target] if isinstance(target, int) else target)) or "none"


def _count(count: int) -> str:
    return f"{count:,} text{'' if count == 1 else 's'}"


def _left_out(count: int, there: int) -> str:
    """Return the end of a caption, with the number of texts in the report if some are missing."""
    return f", {there:,} shown here." if there < count else "."
