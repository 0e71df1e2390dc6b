"""`python -m studio classify ...`: labels for texts, one or a whole file of them.

python -m studio classify predict --labels sport,science "The match ended in a draw."
python -m studio classify predict --labels spam,ham --template message --calibrate mails.csv --out labelled.csv
python -m studio classify predict --labels positive,negative reviews.jsonl --json
python -m studio classify predict --adapter 3f2a mails.csv          # by a trained head: it knows its labels
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

import typer

from studio.cli_runs import Json
from studio.errors import StudioError

if TYPE_CHECKING:
    from studio.backend.classify import Prediction
    from studio.backend.classify_file import LabelledRow, Predict
    from studio.backend.download import Progress

classify_app = typer.Typer(no_args_is_help=True, help="Classification of texts, without training or by a trained head.")


@classify_app.command("predict")
def predict(
    source: Annotated[str, typer.Argument(metavar="TEXT|FILE", help="A text, or a file with one text a row.")],
    labels: Annotated[
        str, typer.Option(help="The labels to choose from, separated by commas; a trained head has its own.")
    ] = "",
    template: Annotated[
        str, typer.Option(help="topic, sentiment, message or continuation; or a text with {text} and {labels} in it.")
    ] = "",
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Subtract what the labels get where a text says nothing.")
    ] = False,
    cut: Annotated[str, typer.Option(help="Where a text that is too long is cut: middle (or, given so, end).")] = "",
    adapter: Annotated[
        str | None, typer.Option(help="Classify with it: a run's id, or the folder of a PEFT adapter or classifier.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A model; else the adapter's, where a run made it; else starter.")
    ] = None,
    precision: Annotated[str, typer.Option(help="nf4, bf16 or fp32; auto is what suits machine and model.")] = "auto",
    column: Annotated[str, typer.Option(help="Of a file: the column of the texts, where its name doesn't tell.")] = "",
    out: Annotated[
        Path | None, typer.Option(help="Of a file: the new .csv or .jsonl file; else FILE.labelled.csv beside it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Labels a text, or every row of a file: by labels that need no training, or by a trained head."""
    if not labels and adapter is None:
        raise StudioError("Say which labels there are to choose from, as in --labels spam,ham.")
    if not labels and (template or calibrate or cut):
        raise StudioError("--template, --calibrate and --cut are for --labels: a trained head does without. Drop them.")
    from studio.cli import progress_bar

    cancel = threading.Event()
    with progress_bar() as progress:
        chosen = _Chosen(adapter, model, precision, progress, cancel)
        if labels:
            classify, names = _zero_shot(chosen, labels, template or "topic", calibrate, cut or "middle")
        file = _file(source)
        if file is None and (out or column):
            raise StudioError(f"{'--out' if out else '--column'} is for files, and this is a text. Leave it out.")
        if not labels:
            classify, names = _trained(chosen)
        if file is not None:
            out = out if out or as_json else file.with_name(f"{file.stem}.labelled.csv")
            _predict_file(file, classify, out, names, column, chosen, as_json)
            return
        (prediction,) = classify([source])
    _print_prediction(prediction, as_json)


class _Chosen(NamedTuple):
    """Who classifies, and who hears of it."""

    adapter: str | None
    model: str | None
    precision: str
    progress: Progress
    cancel: threading.Event


def _file(source: str) -> Path | None:
    """The file, where the source is one; None for a text.

    Raises:
        StudioError: it is named like a file that does not exist, or is a folder.
    """
    from studio.backend.file_type import ENDINGS

    path = Path(source)
    try:
        if path.is_file():
            return path
        if path.is_dir() and ("/" in source or not source.strip(".")):
            raise StudioError(f"{source} is a folder. Name one of its files.")
    except OSError:  # longer than a file's name can be
        return None
    if path.suffix.lower() in ENDINGS and not any(letter.isspace() for letter in source):
        raise StudioError(f"There is no file {source}. Check its name and folder.")
    return None


def _zero_shot(
    chosen: _Chosen, labels: str, template: str, calibrate: bool, cut: str
) -> tuple[Predict, tuple[str, ...]]:
    """Loads the model once there is a text: by then a file has been looked through, and its faults were said."""
    from studio.backend.adapters import find
    from studio.backend.classify import LabelTask, ZeroShot
    from studio.backend.engine import Engine
    from studio.backend.label_prompt import parse_labels

    task = LabelTask(parse_labels(labels), template, calibrate, cast(Any, cut))
    trained = None if chosen.adapter is None else find(chosen.adapter).model

    @cache
    def classifier() -> ZeroShot:
        engine = Engine(compile_steps=False)
        engine.load(chosen.model or trained or "starter", chosen.progress, cast(Any, chosen.precision))
        if chosen.adapter is not None:
            engine.load_adapter(chosen.adapter, chosen.adapter)
        return ZeroShot(engine)

    return lambda texts: classifier().predict(texts, task, chosen.adapter, chosen.cancel), task.labels


def _trained(chosen: _Chosen) -> tuple[Predict, tuple[str, ...]]:
    from studio.backend.trained_classifier import TrainedClassifier
    from studio.backend.trained_predictions import TrainedHead

    assert chosen.adapter is not None
    head = TrainedHead(
        TrainedClassifier.load(chosen.adapter, model=chosen.model, precision=chosen.precision, progress=chosen.progress)
    )
    return lambda texts: head.predict(texts, chosen.cancel), head.labels


def _print_prediction(prediction: Prediction, as_json: bool) -> None:
    for notice in prediction.notices:
        print(notice, file=sys.stderr)
    if as_json:
        print(json.dumps([prediction.row()]))
        return
    for label, score in sorted(prediction.scores.items(), key=lambda pair: -pair[1]):
        print(f"{score:7.1%}  {label}")


def _predict_file(
    file: Path,
    classify: Predict,
    out: Path | None,
    labels: Sequence[str],
    column: str,
    chosen: _Chosen,
    as_json: bool,
) -> None:
    from studio.backend.classify_file import predict_file

    rows: list[dict[str, Any]] = []

    def keep(row: LabelledRow) -> None:
        nothing: dict[str, Any] = {"text": None, "label": None, "confidence": None, "scores": {}}
        rows.append(row.prediction.row() if row.prediction else nothing)

    each = keep if as_json else lambda row: None
    with _interrupted(chosen.cancel):
        report = predict_file(file, classify, out, labels, column, chosen.cancel, chosen.progress, each)
    for sentence in (*report.notices, *map(str, report.bad_rows)):
        print(sentence, file=sys.stderr)
    if report.bad > len(report.bad_rows):
        print(f"... and {report.bad - len(report.bad_rows):,} more bad rows.", file=sys.stderr)
    if as_json:
        print(json.dumps(rows))
    if report.cancelled:
        raise StudioError(f"Stopped: {report.finished}")
    if as_json:
        return
    print(report.finished, *(f"{count:7,}  {label}" for label, count in report.counts.most_common()), sep="\n")


@contextmanager
def _interrupted(cancel: threading.Event) -> Iterator[None]:
    """Ctrl+C sets it, so that the rows that are finished stay; a second one ends at once."""

    def stop(*signal_and_frame: object) -> None:
        cancel.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
