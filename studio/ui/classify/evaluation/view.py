"""The evaluation of a classifier as HTML: figures and baselines, confusion matrix, metrics by label, calibration, and
experts by label.

    mount = mounting("classify/evaluation/evaluation.js")
    gr.HTML(shown(evaluation.of_run(run_id), "tone, 24 November"), js_on_load=mount)
    gr.HTML(shown(test.report("mails.csv"), "base model") + beside(report_of_the_run, "tone"))

Reports come from `studio.backend.classification.evaluation`. All text is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from studio.backend.classification.evaluation import ALONE, BOTH, FITTED, MAJORITY, MEAN, MOST, Report
from studio.ui.classify.evaluation.plots import experts, reliability
from studio.ui.classify.evaluation.texts import mistakes
from studio.ui.classify.view import percent, table
from studio.ui.common import card

NAME = "Evaluation"
UNTRAINED = (
    "There is no evaluation yet. Upload a file with true labels under “File”, choose its label column, and classify it."
)
UNMEASURED = (
    "There is no evaluation of this classifier: its run held out no rows, or used an older version of the studio. "
    "Classify a file with true labels under “File”, or train again with eval_share above 0."
)
ADVICE = {
    FITTED: "Method probe is enough for these rows.",
    BOTH: "Set with_tfidf, so that the classifier takes this sum.",
    ALONE: "Leave out with_tfidf.",
}
"""What to do if one of these systems does better than the classifier."""
WORTH_ROWS = 0.01
"""Gain of a score by doubling the rows, from which on more rows are worth their while."""
HERE = Path(__file__).parent


class Figure(NamedTuple):
    key: str
    title: str
    shown: Callable[[float], str]
    lowest: bool = False
    """Whether the lowest value is the best."""


def _decimals(value: float) -> str:
    return f"{value:.3f}"


def _number(value: float) -> str:
    return f"{value:.4g}"


ACCURACY = Figure("accuracy", "accuracy", percent)
OF_LABELS = (
    ACCURACY,
    Figure("macro_f1", "macro F1", _decimals),
    Figure("micro_f1", "micro F1", _decimals),
    Figure("auc", "ROC-AUC", _decimals),
    Figure("ece", "ECE", _decimals, lowest=True),
)
OF_NUMBERS = (
    Figure("mean_absolute_error", "mean absolute error", _number, lowest=True),
    Figure("rmse", "RMSE", _number, lowest=True),
    Figure("r2", "R²", _decimals),
)


def waiting(text: str = UNTRAINED) -> str:
    return card.waiting(NAME, text)


def problem(text: str) -> str:
    return card.card(NAME, card.problem(text))


def shown(report: Report, who: str) -> str:
    """Return a report as HTML.

    Args:
        who: name of the classifier.
    """
    parts = [_headline(report, who), mistakes(report), _classes(report), reliability(report), experts(report)]
    return f'<div class="ev-report">{"".join(parts)}</div>'


def beside(report: Report, who: str) -> str:
    """Return a collapsed report, for display below another report."""
    summary = f"{escape(who)}: {escape(report['of'])}"
    return f'<details class="ev-beside"><summary>{summary}</summary>{shown(report, who)}</details>'


def in_a_sentence(report: Report) -> str:
    """Return a sentence such as "Correct for 91.2 % of 480 rows with a true label: see “Evaluation”."""
    own, rows = report["systems"][0], f"{report['rows']:,} row{'s' if report['rows'] > 1 else ''}"
    if report["problem"] == "regression":
        off = _number(own["mean_absolute_error"])
        return f"Mean absolute error {off} on {rows} with a true number: see “{NAME}”."
    right = "Correct" if report["problem"] == "single_label" else "All labels correct"
    return f"{right} for {percent(own['accuracy'])} of {rows} with a true label: see “{NAME}”."


def style() -> str:
    return (HERE / "evaluation.css").read_text(encoding="utf-8")


# --- figures and baselines


def _headline(report: Report, who: str) -> str:
    own = report["systems"][0]
    pairs = [(each.shown(own[each.key]), each.title) for each in _figures(report) if own[each.key] is not None]
    return card.card(
        NAME,
        f'<h3 role="status">{escape(who)} <small>measured on {escape(report["of"])}</small></h3>'
        f"{card.figures(pairs)}{_compared(report)}{_systems(report)}{_learning_curve(report)}"
        f"{''.join(map(card.note, report['notices']))}",
    )


def _figures(report: Report) -> list[Figure]:
    """Return the available figures, without micro F1 for single labels, where it equals the accuracy."""
    if report["problem"] == "regression":
        return [*OF_NUMBERS]
    known = [each for each in OF_LABELS if any(system[each.key] is not None for system in report["systems"])]
    return [each for each in known if each.key != "micro_f1" or report["problem"] == "multi_label"]


def _compared(report: Report) -> str:
    """Return a comparison with the best other system."""
    own, *others = report["systems"]
    if not others:
        return ""
    figure = next(each for each in _figures(report) if each.key == _compared_by(report))
    best = min(others, key=lambda other: other[figure.key] if figure.lowest else -other[figure.key])
    better = best[figure.key] - own[figure.key] if figure.lowest else own[figure.key] - best[figure.key]
    name = f"“{escape(best['name'])}”"
    if better <= 0:
        text = f"{name} does {'better' if better < 0 else 'as well'} on these rows. {_advice(report, best['name'])}"
    else:
        side = "below" if figure.lowest else "above"
        title = f"{figure.title[0].upper()}{figure.title[1:]}"
        shown = f"{100 * better:.1f} points" if figure is ACCURACY else figure.shown(better)
        text = f"{title} {shown} {side} {name}."
    return f'<p class="ev-lead">{text}{_interval(report, best["name"], figure)}</p>'


def _compared_by(report: Report) -> str:
    """Return the key of the figure by which systems are compared; reports of earlier versions compare accuracies."""
    default = OF_NUMBERS[0].key if report["problem"] == "regression" else ACCURACY.key
    return str(report.get("compared_by", default))


def _advice(report: Report, best: str) -> str:
    """Return what to do if another system is as good as the classifier."""
    if best in (MAJORITY, MOST, MEAN):
        return "There is no evidence that the classifier distinguishes the texts."
    if best in ADVICE:
        return ADVICE[best]
    trained = report.get("trained", {})
    tries = ["method lora"] if trained.get("method") == "probe" else []
    tries += ["with_tfidf, which takes the sum of both"] if trained.get("with_tfidf") is False else []
    return f"Try {', '.join([*tries, 'more rows'])}, or a prompt that says what the labels are."


def _interval(report: Report, name: str, figure: Figure) -> str:
    """Return a sentence about the difference to another system; "" for reports without intervals."""
    found = next((each for each in report.get("differences", []) if each["better_than"] == name), None)
    if found is None or found["from"] == found["to"]:
        return ""
    scale, unit = (100, " points") if figure is ACCURACY else (1, "")
    bounds = f"{scale * found['from']:+.3g} to {scale * found['to']:+.3g}{unit}"
    chance = "may be chance" if found["from"] <= 0 <= found["to"] else "is more than chance"
    return f" The difference {chance}: the 95 % interval is {bounds} (paired bootstrap)."


def _learning_curve(report: Report) -> str:
    """Return the scores of heads that were fitted to fewer rows, and whether more rows would help."""
    points = report.get("learning_curve", [])
    if len(points) < 2:
        return ""
    figure = next(each for each in _figures(report)[::-1] if each.key in points[0])
    rows = [[f"{point['rows']:,}", figure.shown(point[figure.key])] for point in points]
    gain = points[-1][figure.key] - points[-2][figure.key]
    told = "more rows would probably help" if gain > WORTH_ROWS else "more rows would help little"
    title = f"{figure.title} by training rows"
    return (
        f'<details class="ev-curve"><summary>{title}: {told}</summary>'
        f"{table(['training rows', figure.title], rows, title)}<p><small>Of the head that is fitted to the frozen "
        "model.</small></p></details>"
    )


def _systems(report: Report) -> str:
    figures, systems = _figures(report), report["systems"]
    rows = "".join(
        f'<tr{" class=ev-own" if system is systems[0] else ""}><th scope="row">{escape(system["name"])}</th>'
        + "".join(f"<td>{_cell(each, system, systems)}</td>" for each in figures)
        + "</tr>"
        for system in systems
    )
    columns = "".join(f'<th scope="col">{each.title}</th>' for each in figures)
    return (
        f'<div class="dp-scroll ev-systems" tabindex="0" role="region" aria-label="Comparison with baselines"><table>'
        f'<thead><tr><th scope="col">on the same rows</th>{columns}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _cell(figure: Figure, system: dict[str, Any], systems: Sequence[dict[str, Any]]) -> str:
    """Mark the best value of a column, compared at the shown precision."""
    values = [each[figure.key] for each in systems if each[figure.key] is not None]
    if system[figure.key] is None:
        return "–"
    text = figure.shown(system[figure.key])
    bounds = [figure.shown(system[key]) for key in (f"{figure.key}_low", f"{figure.key}_high") if key in system]
    between = f" <small>{' to '.join(bounds)}</small>" if bounds else ""
    best = figure.shown(min(values) if figure.lowest else max(values))
    return (f"<b>{text}</b> <small>best</small>" if text == best and len(systems) > 1 else text) + between


# --- each label


def _classes(report: Report) -> str:
    if not report.get("classes"):
        return ""
    rows = [
        [
            escape(each["label"]),
            *(_decimals(each[key]) for key in ("precision", "recall", "f1")),
            "–" if each["auc"] is None else _decimals(each["auc"]),
            f"{each['support']:,}",
        ]
        for each in report["classes"]
    ]
    head = ["label", "precision", "recall", "F1", "ROC-AUC", "rows"]
    explained = (
        "Precision: share of texts predicted as the label that have it. Recall: share of texts with the label that are "
        "predicted as it."
    )
    title = "Metrics by label"
    return card.card(title, f"<h3>{title}</h3>{table(head, rows, title)}<p><small>{explained}</small></p>")
