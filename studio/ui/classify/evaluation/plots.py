"""Calibration of a classifier and experts by label, as HTML; `calibration.js` draws the calibration plot.

html = reliability(report) + experts(report)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import Any, NamedTuple

from studio.backend.classification.evaluation import Report
from studio.ui.classify.view import percent, table
from studio.ui.common import card

CALIBRATION, EXPERTS = "Calibration", "Experts by label"
MOST_EXPERTS = 8
"""Experts shown per label."""
OPENED = 2
"""Labels whose experts are expanded."""


# --- reliability


class Bin(NamedTuple):
    low: float
    high: float
    size: int
    confidence: float
    accuracy: float


def reliability(report: Report) -> str:
    curve = report.get("reliability")
    if not curve:
        return ""
    bins = _bins(curve)
    several = report["problem"] == "multi_label"
    rows = [[_range(each), f"{each.size:,}", percent(each.confidence), percent(each.accuracy)] for each in bins]
    head = [
        "confidence",
        "text-label pairs" if several else "texts",
        "mean confidence",
        "has the label" if several else "correct",
    ]
    numbers = f'<details class="dp-table"><summary>Table</summary>{table(head, rows, "Reliability")}</details>'
    text = "".join(f"<p>{sentence}</p>" for sentence in _sentences(report, bins, several))
    return card.card(
        CALIBRATION,
        f'<h3>{CALIBRATION}</h3><div class="ev-calibration">{_plot(bins, several)}<div>{text}{numbers}</div></div>',
    )


def _bins(curve: dict[str, Any]) -> list[Bin]:
    """Return the bins that are not empty."""
    edges = curve["edges"]
    every = zip(edges, edges[1:], curve["counts"], curve["confidence"], curve["accuracy"], strict=False)
    return [Bin(*each) for each in every if each[2]]


def _range(each: Bin) -> str:
    return f"{100 * each.low:.0f} to {100 * each.high:.0f} %"


def _sentences(report: Report, bins: Sequence[Bin], several: bool) -> list[str]:
    ece, temperature = report["reliability"]["ece"], report["temperature"]
    right = "the share of texts with the label" if several else "accuracy"
    sentences = [
        f"<b>ECE {ece:.3f}</b>: confidence and {right} differ by {100 * ece:.1f} points on average. On the diagonal "
        "they are equal. Larger points stand for more predictions."
    ]
    if not several:
        count = sum(each.size for each in bins)
        excess = sum(each.size * (each.confidence - each.accuracy) for each in bins) / count
        if abs(excess) >= 0.005:
            how = "overconfident" if excess > 0 else "underconfident"
            sentences.append(f"Overall, the classifier is {how} by {100 * abs(excess):.1f} points.")
    if temperature:
        sentences.append(
            f"The classifier scales its scores by the temperature <b>{temperature['value']:.2f}</b>, fitted on these "
            "rows. On rows left out of the fit, it changes the ECE from "
            f"{temperature['ece_before']:.3f} to {temperature['ece_after']:.3f}. The plot shows unscaled scores."
        )
    return sentences


def _plot(bins: Sequence[Bin], several: bool) -> str:
    """Return the data that `calibration.js` draws; the table has the same numbers."""
    points = json.dumps([[each.confidence, each.accuracy, each.size] for each in bins])
    side = "share with the label" if several else "accuracy"
    return f'<figure class="ev-plot" data-calibration="{escape(points)}" data-accuracy="{side}"></figure>'


# --- experts


def experts(report: Report) -> str:
    profile = report["profile"]
    if not profile:
        return ""
    texts, comparisons = f"{profile['texts']:,} texts", f"{profile['comparisons']:,} comparisons"
    if not profile["entries"]:
        told = (
            f"No expert is used significantly more for any label ({comparisons} in {texts})."
            if profile["comparisons"]
            else f"{texts} are too few to compare experts: each label needs at least eight. Hold out more rows."
        )
        return card.card(EXPERTS, f"<h3>{EXPERTS}</h3><p>{told}</p>")
    labels = [(label, [*entries]) for label, entries in groupby(profile["entries"], key=lambda entry: entry["label"])]
    widest = max(max(each["share"], each["others"] + each["high"]) for each in profile["entries"])
    return card.card(
        EXPERTS,
        f"<h3>{EXPERTS} <small>in {texts}</small></h3>"
        "<p>Share of a router's assignments that go to an expert, averaged over the texts of a label, compared with "
        "all other texts. Only experts that are used significantly more for the label are listed: the 95 % interval "
        f"of the difference is corrected for {comparisons}.</p>"
        '<p class="ev-legend" aria-hidden="true"><i class="ev-this"></i> texts with the label <i class="ev-range"></i> '
        '95 % interval <i class="ev-others"></i> all other texts</p>'
        + "".join(_of_label(label, entries, widest, i < OPENED) for i, (label, entries) in enumerate(labels)),
    )


def _of_label(label: str, entries: Sequence[dict[str, Any]], widest: float, opened: bool) -> str:
    items = "".join(_expert(entry, widest) for entry in entries[:MOST_EXPERTS])
    more = len(entries) - MOST_EXPERTS
    left = f"<p><small>… and {more:,} more.</small></p>" if more > 0 else ""
    return (
        f'<details class="ev-label"{" open" if opened else ""}><summary dir="auto">{escape(label)}</summary>'
        f'<ol class="ev-experts">{items}</ol>{left}</details>'
    )


def _expert(entry: dict[str, Any], widest: float) -> str:
    low, high = entry["others"] + entry["low"], entry["others"] + entry["high"]
    start, end = (_width(each, widest) for each in (low, high))
    this, others = (_width(entry[key], widest) for key in ("share", "others"))
    difference = entry["share"] - entry["others"]
    return (
        f"<li><b>{escape(entry['kind'])} layer {entry['layer']}, expert {entry['expert']}</b>"
        '<span class="ev-pair" aria-hidden="true">'
        f'<span><i class="ev-this" style="width:{this:.1f}%"></i>'
        f'<i class="ev-range" style="left:{start:.1f}%;width:{end - start:.1f}%"></i></span>'
        f'<span><i class="ev-others" style="width:{others:.1f}%"></i></span></span>'
        f"<span><b>{percent(entry['share'])}</b> vs. {percent(entry['others'])}, {entry['count']:,} assignments "
        f"<small>{100 * difference:+.1f} points ({100 * entry['low']:+.1f} to {100 * entry['high']:+.1f})</small>"
        "</span></li>"
    )


def _width(share: float, widest: float) -> float:
    return 100 * min(max(share / widest, 0.0), 1.0) if widest else 0.0
