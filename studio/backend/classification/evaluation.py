"""Evaluate a classifier on labelled rows, with baselines on the same rows. The report is plain data.

    report = evaluate(Truth(labels, texts, targets), scores, "200 held-out rows of mails.csv", usual, {TFIDF: plain})
    report["systems"][0]["accuracy"], report["systems"][1]["name"]
    of_run("3f2a")                                  # the report that a run wrote at its end, or None
    print(table(report))

`file_evaluation.py` evaluates the rows of a file.

T texts, C labels. Scores `[T, C]` are probabilities (independent per label in multi-label problems) or numbers.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from studio.analysis import measures
from studio.analysis.bootstrap import Resamples, interval
from studio.analysis.class_profile import ClassProfile
from studio.backend.classification.head import THRESHOLD, LabelledFeature
from studio.backend.classification.text_routing import expert_counts
from studio.backend.data.labelled import Truth
from studio.backend.runs.run import Run
from studio.backend.runs.store import RunStore
from studio.backend.system.files import atomic_write, read_json
from studio.errors import StudioError

FILE = "evaluation.json"
OURS, TFIDF = "This classifier", "TF-IDF + logistic regression"
FITTED, ALONE, BOTH = "Fitted head, without LoRA", "The head alone, without TF-IDF", "The sum with TF-IDF"
MAJORITY, MOST = "The most frequent label", "What most texts have"
RIDGE, MEAN = "TF-IDF + ridge regression", "The mean"
MOST_TEXTS, MOST_ALIKE = 1000, 50
"""Maximum texts in a report, and maximum correctly classified texts per label."""
SHOWN_TEXT = 500
"""Characters of a text in a report."""
FEWEST_TO_SCALE = 50
"""Minimum rows to fit a temperature; with fewer, it would mostly fit noise."""
FEWEST_ROWS = 50
"""Rows below which a notice warns of the uncertainty."""
PROFILED_TEXTS = 400
Report = dict[str, Any]


def of_run(run: Run | str) -> Report | None:
    """Return the report of a run, or None if it has none.

    Raises:
        StudioError: there is no such run, or its report is damaged.
    """
    run = run if isinstance(run, Run) else RunStore().get(run)
    file = run.folder / FILE
    report = read_json(file)
    if report is None and file.exists():
        raise StudioError(f"{FILE} of the run {run.id[:8]} is damaged. Resume the run to evaluate it again.")
    return report


def plain_name(problem: str) -> str:
    """Return the name of the TF-IDF baseline."""
    return RIDGE if problem == "regression" else TFIDF


def write(report: Report, run: Run) -> None:
    """Write the report to the run's folder. Raise StudioError if the disk is full."""
    try:
        atomic_write(run.folder / FILE, json.dumps(report, ensure_ascii=False))
    except OSError as error:
        raise StudioError(
            f"{run.folder / FILE} can't be written ({error.strerror}). Free some space and resume the run: its last "
            "checkpoint is intact."
        ) from error


def evaluate(
    truth: Truth,
    scores: np.ndarray,
    of: str,
    usual: Truth | None = None,
    others: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> Report:
    """Return the report of a classifier's scores.

    Args:
        scores: `[T, C]`, not scaled by a temperature.
        of: the evaluated rows, as a phrase.
        usual: the training rows, from which the constant baseline is taken; the evaluated rows if None.
        others: scores `[T, C]` of other classifiers on the same rows, by name.

    Raises:
        StudioError: there are no rows, or a score is not finite.
    """
    scores = measures.finite(scores)
    compared = {name: measures.finite(each) for name, each in others.items()}
    measured: dict[str, Callable[..., Report]]
    measured = {"single_label": _single, "multi_label": _multi, "regression": _numbers}
    constant = _constant(truth, usual or truth)
    report: Report = {
        "problem": truth.problem,
        "labels": [*truth.names],
        "rows": len(truth.texts),
        "of": of,
        "profile": None,
        "temperature": None,
        "differences": [],
        "notices": [],
    } | measured[truth.problem](truth, scores, compared, constant)
    if len(truth.texts) < FEWEST_ROWS:
        report["notices"].append(
            f"{len(truth.texts):,} rows are few: the figures may be far from those of other texts. Evaluate more rows "
            "(raise eval_share, or classify a file with true labels)."
        )
    _add_intervals(report, truth, {OURS: scores, **compared, constant[0]: constant[1]})
    return report


def _constant(truth: Truth, usual: Truth) -> tuple[str, np.ndarray]:
    """Return the name and the scores `[T, C]` of the baseline that answers the same for each text."""
    if truth.problem == "regression":
        name, answer = MEAN, np.array([np.mean(usual.targets)])
    elif truth.problem == "multi_label":
        name, answer = MOST, _sets(usual).mean(axis=0)
    else:
        counts = np.bincount(np.asarray(usual.targets, np.int64), minlength=len(truth.names))
        name, answer = MAJORITY, np.eye(len(truth.names))[counts.argmax()]
    return name, np.broadcast_to(answer, (len(truth.texts), len(answer)))


def _add_intervals(report: Report, truth: Truth, scores: Mapping[str, np.ndarray]) -> None:
    """Add 95 % intervals to all systems, and the differences between the first and the others (paired bootstrap).

    The figure is macro-F1, or the mean absolute error of a regression.

    Args:
        scores: `[T, C]` by the system's name, the evaluated classifier first.
    """
    resamples, rows = Resamples(len(truth.texts)), {row["name"]: row for row in report["systems"]}
    is_number = truth.problem == "regression"
    figure = report["compared_by"] = "mean_absolute_error" if is_number else "macro_f1"
    found = {name: _resampled(resamples, truth, each) for name, each in scores.items()}
    ours, *others = scores
    for name, each in found.items():
        rows[name][f"{figure}_low"], rows[name][f"{figure}_high"] = interval(each)
    sign = -1 if is_number else 1
    for name in others:
        low, high = interval(sign * (found[ours] - found[name]))
        by = sign * (rows[ours][figure] - rows[name][figure])
        report["differences"].append({"better_than": name, "by": by, "from": low, "to": high})


def _resampled(resamples: Resamples, truth: Truth, scores: np.ndarray) -> np.ndarray:
    """Return the figure in each resample, `[R]`."""
    if truth.problem == "regression":
        return resamples.mean(np.abs(scores[:, 0] - np.asarray(truth.targets, np.float64)))
    if truth.problem == "multi_label":
        return resamples.macro_f1(_sets(truth), scores >= THRESHOLD)
    one_hot = np.eye(len(truth.names), dtype=bool)
    return resamples.macro_f1(one_hot[np.asarray(truth.targets, np.int64)], one_hot[scores.argmax(axis=-1)])


def profile(model: Any, truth: Truth, rows: Sequence[LabelledFeature], pad_id: int) -> Report:
    """Return the experts that fire more for each label, from about PROFILED_TEXTS texts in all.

    Args:
        rows: token ids of the texts, with their targets.
    """
    by_label: dict[int, list[int]] = defaultdict(list)
    for i, target in enumerate(truth.targets):
        by_label[int(target)].append(i)  # type: ignore[arg-type]
    most = max(PROFILED_TEXTS // len(by_label), 1)
    chosen = [i for indices in by_label.values() for i in indices[:most]]
    found = ClassProfile(truth.names)
    counts = expert_counts(model, [rows[i][0] for i in chosen], pad_id)
    found.add(counts, np.array([int(truth.targets[i]) for i in chosen]))  # type: ignore[arg-type]
    kinds = model.config.family.router_kinds
    entries = [{**vars(entry), "kind": kinds[entry.kind]} for entry in found.entries()]
    return {"texts": len(chosen), "comparisons": found.comparisons, "entries": entries}


def table(report: Report) -> str:
    """Return the report as text for a terminal."""
    lines = [f"Measured on {report['of']}.", "", *_lines(report["systems"])]
    for rows in (report.get("differences"), report.get("learning_curve")):
        lines += ["", *_lines(rows)] if rows else []
    if report.get("classes"):
        lines += ["", *_lines(report["classes"])]
    if matrix := report.get("confusion"):
        names = report["labels"]
        rows = [
            {"true \\ found": name, **dict(zip(names, row, strict=True))}
            for name, row in zip(names, matrix, strict=True)
        ]
        lines += ["", *_lines(rows)]
    if scale := report["temperature"]:
        lines += ["", "Temperature {value:.2f}: ECE {ece_before:.3f} without, {ece_after:.3f} with it.".format(**scale)]
    return "\n".join([*lines, *(f"Note: {notice}" for notice in report["notices"])])


def _lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a table as aligned lines: names on the left, figures on the right."""
    cells = [[name.replace("_", " ") for name in rows[0]], *([_cell(value) for value in row.values()] for row in rows)]
    first, *widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([line[0].ljust(first), *(cell.rjust(width) for cell, width in zip(line[1:], widths, strict=True))])
        for line in cells
    ]


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


Constant = tuple[str, np.ndarray]


def _single(truth: Truth, scores: np.ndarray, compared: Mapping[str, np.ndarray], constant: Constant) -> Report:
    names, true = truth.names, np.asarray(truth.targets, np.int64)  # [T]
    true_names = [names[i] for i in true]
    found, confidence = scores.argmax(axis=-1), scores.max(axis=-1)  # [T]

    def measured(scores: np.ndarray) -> measures.Measures:
        return measures.measure(true_names, [names[i] for i in scores.argmax(axis=-1)], names)

    def curves(scores: np.ndarray) -> tuple[measures.Auc, measures.Reliability]:
        right = scores.argmax(axis=-1) == true
        return measures.roc_auc(true_names, scores, names), measures.reliability(scores.max(axis=-1), right)

    ours, (auc, curve) = measured(scores), curves(scores)
    systems = [_row(OURS, ours, auc, curve)]
    systems += [_row(name, measured(each), *curves(each)) for name, each in compared.items()]
    systems.append(_row(constant[0], measured(constant[1])))
    assert ours.confusion is not None
    return {
        "systems": systems,
        "classes": _classes(ours, auc),
        "confusion": ours.confusion.tolist(),
        "reliability": _curve(curve),
        "temperature": _temperature(scores, true),
        "notices": [*ours.notices],
        **_texts(truth.texts, true.tolist(), found.tolist(), confidence, found != true),
    }


def _row(
    name: str, found: measures.Measures, auc: measures.Auc | None = None, curve: measures.Reliability | None = None
) -> dict[str, Any]:
    """Return a row of the comparison. A constant baseline has no AUC and no calibration error."""
    row = {"name": name, "accuracy": found.accuracy, "macro_f1": found.macro_f1, "micro_f1": found.micro_f1}
    return row | {"auc": auc and auc.macro, "ece": curve and curve.ece}


def _classes(ours: measures.Measures, auc: measures.Auc) -> list[dict[str, Any]]:
    return [{**vars(each), "auc": auc.per_class.get(each.label)} for each in ours.per_class]


def _temperature(scores: np.ndarray, true: np.ndarray) -> dict[str, float] | None:
    """Fit a temperature on all rows; return None if it doesn't reduce the calibration error.

    The error with a temperature is cross-validated: each half of the rows uses the temperature of the other half.
    """
    if len(true) < FEWEST_TO_SCALE:
        return None
    logits = np.log(np.maximum(scores, np.finfo(np.float64).tiny))
    scaled = np.empty_like(scores)
    halves = np.arange(len(true)) % 2
    for half in (0, 1):
        temperature = measures.fit_temperature(logits[halves != half], true[halves != half])
        scaled[halves == half] = _softmax(logits[halves == half] / temperature)
    before, after = (
        measures.reliability(each.max(axis=-1), each.argmax(axis=-1) == true).ece for each in (scores, scaled)
    )
    if after >= before:
        return None
    return {"value": measures.fit_temperature(logits, true), "ece_before": before, "ece_after": after}


def _softmax(logits: np.ndarray) -> np.ndarray:
    from scipy.special import softmax

    found: np.ndarray = softmax(logits, axis=-1)
    return found


def _multi(truth: Truth, scores: np.ndarray, compared: Mapping[str, np.ndarray], constant: Constant) -> Report:
    true, found = _sets(truth), scores >= THRESHOLD  # [T, C]

    def curves(scores: np.ndarray) -> tuple[measures.Auc, measures.Reliability]:
        return _auc_of_sets(true, scores, truth.names), measures.reliability(scores.ravel(), true.ravel())

    ours, (auc, curve) = measures.measure_sets(true, found, truth.names), curves(scores)
    systems = [_row(OURS, ours, auc, curve)]
    for name, each in compared.items():
        systems.append(_row(name, measures.measure_sets(true, each >= THRESHOLD, truth.names), *curves(each)))
    systems.append(_row(constant[0], measures.measure_sets(true, constant[1] >= THRESHOLD, truth.names)))
    wrong = (true != found).any(axis=-1)  # [T]
    return {
        "systems": systems,
        "classes": _classes(ours, auc),
        "reliability": _curve(curve),
        "notices": [*ours.notices],
        **_texts(truth.texts, _indices(true), _indices(found), scores.max(axis=-1), wrong),
    }


def _sets(truth: Truth) -> np.ndarray:
    """Return the labels of each text as bool `[T, C]`."""
    sets = np.zeros((len(truth.texts), len(truth.names)), bool)
    for row, target in zip(sets, truth.targets, strict=True):
        row[list(target)] = True  # type: ignore[arg-type]
    return sets


def _auc_of_sets(true: np.ndarray, scores: np.ndarray, names: Sequence[str]) -> measures.Auc:
    """Return the AUC of each label that some texts have and others don't."""
    sides = ("no", "yes")
    per_class = {}
    for name, has, score in zip(names, true.T, scores.T, strict=True):
        found = measures.roc_auc([sides[int(one)] for one in has], np.stack([1 - score, score], axis=-1), sides)
        if found.macro is not None:
            per_class[name] = found.macro
    return measures.Auc(float(np.mean([*per_class.values()])) if per_class else None, per_class)


def _indices(sets: np.ndarray) -> list[list[int]]:
    return [np.flatnonzero(row).tolist() for row in sets]


def _numbers(truth: Truth, scores: np.ndarray, compared: Mapping[str, np.ndarray], constant: Constant) -> Report:
    true, found = np.asarray(truth.targets, np.float64), scores[:, 0]  # [T]
    systems = [{"name": OURS, **measures.measure_numbers(true, found)}]
    others = [*compared.items(), constant]
    systems += [{"name": name, **measures.measure_numbers(true, each[:, 0])} for name, each in others]
    error = np.abs(found - true)
    worst = np.argsort(-error, kind="stable")[:MOST_TEXTS]
    texts = [
        {"text": truth.texts[i][:SHOWN_TEXT], "true": true[i], "found": found[i], "confidence": None} for i in worst
    ]
    return {"systems": systems, "texts": texts, "texts_left_out": len(true) - len(texts)}


def _curve(found: measures.Reliability) -> dict[str, Any]:
    return {
        "edges": found.edges.tolist(),
        "counts": found.counts.tolist(),
        "confidence": [None if math.isnan(each) else each for each in found.confidence.tolist()],
        "accuracy": [None if math.isnan(each) else each for each in found.accuracy.tolist()],
        "ece": found.ece,
    }


def _texts(
    texts: Sequence[str], true: Sequence[Any], found: Sequence[Any], confidence: np.ndarray, wrong: np.ndarray
) -> dict[str, Any]:
    """Return texts for the report: wrong ones first, most confident first, then some correct ones of each label."""
    order = np.lexsort((-confidence, ~wrong))
    alike: Counter[str] = Counter()
    kept: list[dict[str, Any]] = []
    for i in order:
        alike[str(true[i])] += not wrong[i]
        if len(kept) < MOST_TEXTS and (wrong[i] or alike[str(true[i])] <= MOST_ALIKE):
            text, sure = texts[i][:SHOWN_TEXT], float(confidence[i])
            kept.append({"text": text, "true": true[i], "found": found[i], "confidence": sure})
    return {"texts": kept, "texts_left_out": len(texts) - len(kept)}
