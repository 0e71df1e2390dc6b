"""`python -m studio classify ...`: classify a text or a file of texts, and evaluate classifiers.

python -m studio classify predict --labels sport,science "The match ended in a draw."
python -m studio classify predict --labels spam,ham --template message mails.csv --out labelled.csv
python -m studio classify predict --labels positive,negative reviews.jsonl --json
python -m studio classify predict --adapter 3f2a mails.csv          # a trained head needs no --labels
python -m studio classify evaluate mails.csv --adapter 3f2a         # a column has the true labels
python -m studio classify evaluate --adapter 3f2a                   # the held-out rows of its training
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

import typer

from studio.backend.data.encodings import NAMES as ENCODINGS
from studio.backend.recipe import HUB_PREFIX
from studio.cli.runs import Json
from studio.errors import StudioError

if TYPE_CHECKING:
    from studio.backend.classification.files import Predict
    from studio.backend.classification.prediction import LabelledRow, Prediction
    from studio.backend.data.dataset import DataSettings
    from studio.backend.system.progress import Progress

classify_app = typer.Typer(no_args_is_help=True, help="Classify texts, without training or with a trained head.")


Labels = Annotated[
    str, typer.Option(help="Labels to choose from, separated by commas; not needed with a trained head.")
]
Template = Annotated[
    str,
    typer.Option(
        help="Template: continuation (default), topic, sentiment, message, or a text with {text} and {labels}."
    ),
]
Calibrate = Annotated[
    bool | None,
    typer.Option(help="Subtract the labels' scores for content-free texts; the default is --calibrate."),
]
Cut = Annotated[str, typer.Option(help="Where to cut a text that is too long: middle (the default) or end.")]
Adapter = Annotated[
    str | None, typer.Option(help="Adapter: a run's id, or the folder of a PEFT adapter or classifier.")
]
Model = Annotated[str | None, typer.Option(help="Model id; the default is the adapter's base model, or starter.")]
Precision = Annotated[str, typer.Option(help="nf4, bf16, fp32, or auto to choose by machine and model.")]
Encoding = Annotated[str, typer.Option(help=f"Encoding of a text file: auto to detect it, or {', '.join(ENCODINGS)}.")]
Column = Annotated[str, typer.Option(help="Column of the texts in a file, if its name is not recognized.")]


@classify_app.command("predict")
def predict(
    source: Annotated[str, typer.Argument(metavar="TEXT|FILE", help="A text, or a file with one text per row.")],
    labels: Labels = "",
    template: Template = "",
    calibrate: Calibrate = None,
    cut: Cut = "",
    adapter: Adapter = None,
    model: Model = None,
    precision: Precision = "auto",
    column: Column = "",
    encoding: Encoding = "auto",
    out: Annotated[
        Path | None, typer.Option(help="New .csv or .jsonl file; the default is FILE.labelled.csv next to the input.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Classify a text or every row of a file, without training or with a trained head."""
    from studio.cli.output import progress_bar

    with progress_bar() as progress:
        chosen = _Chosen(labels, template, calibrate, cut, adapter, model, precision, progress, threading.Event())
        chosen.check()
        file = _file(source)
        reading = _reading(encoding)
        of_file = {"--out": out, "--column": column, "--encoding": encoding != "auto"}
        if file is None and (given := [name for name, value in of_file.items() if value]):
            raise StudioError(f"{given[0]} only works with a file, not a text. Leave it out.")
        classifier = _classifier(chosen)
        if file is not None:
            beside = Path() if source.startswith(HUB_PREFIX) else file.parent
            out = out if out or as_json else beside / f"{file.stem}.labelled.csv"
            _predict_file(file, classifier, out, column, reading.encoding, chosen, as_json)
            return
        (prediction,) = classifier.predict([source])
    _print_prediction(prediction, as_json)


@classify_app.command("evaluate")
def evaluate(
    file: Annotated[
        Path | None, typer.Argument(help="File of texts with true labels; the default is the training's held-out rows.")
    ] = None,
    label_column: Annotated[str, typer.Option(help="Column of the true labels.")] = "label",
    labels: Labels = "",
    template: Template = "",
    calibrate: Calibrate = None,
    cut: Cut = "",
    adapter: Adapter = None,
    model: Model = None,
    precision: Precision = "auto",
    column: Column = "",
    encoding: Encoding = "auto",
    as_json: Json = False,
) -> None:
    """Evaluate a classifier: metrics per label, calibration, and baselines on the same rows."""
    from studio.backend.classification import evaluation
    from studio.cli.output import progress_bar

    with progress_bar() as progress:
        chosen = _Chosen(labels, template, calibrate, cut, adapter, model, precision, progress, threading.Event())
        chosen.check()
        report = _held_out(chosen) if file is None else _tested(file, label_column, column, _reading(encoding), chosen)
    print(json.dumps(report) if as_json else evaluation.table(report))


class _Chosen(NamedTuple):
    """The classifier's options, the progress callback and the cancel event."""

    labels: str
    template: str
    calibrate: bool | None
    cut: str
    adapter: str | None
    model: str | None
    precision: str
    progress: Progress
    cancel: threading.Event

    def check(self) -> None:
        """Raise StudioError if the labels are missing or given twice."""
        from jetmoe.adapters.files import is_classifier
        from studio.backend.adapters.find import find

        if not self.labels and self.adapter is None:
            raise StudioError("There are no labels to choose from. Pass them, as in --labels spam,ham.")
        if not self.labels and (self.template or self.calibrate is not None or self.cut):
            raise StudioError(
                "--template, --calibrate and --cut only work with --labels, not with a trained head. Leave them out."
            )
        if self.labels and self.adapter is not None and is_classifier(find(self.adapter).folder):
            raise StudioError(f"{self.adapter} is a trained classifier with fixed labels. Leave out --labels.")


class _Classifier(NamedTuple):
    predict: Predict
    labels: tuple[str, ...]
    problem: str


def _held_out(chosen: _Chosen) -> dict[str, Any]:
    from studio.backend.adapters.find import find
    from studio.backend.classification import evaluation

    if chosen.adapter is None:
        raise StudioError("Nothing to evaluate. Name a file with true labels, or a trained classifier with --adapter.")
    run = find(chosen.adapter).run
    report = None if run is None else evaluation.of_run(run)
    if report is None:
        raise StudioError(f"{chosen.adapter} has no evaluation from its training. Name a file with true labels.")
    return report


def _reading(encoding: str) -> DataSettings:
    """Return the settings for reading a file. Raise StudioError if there is no such encoding."""
    from studio.backend.data.dataset import DataSettings

    return DataSettings(encoding=encoding)


def _tested(file: Path, label_column: str, column: str, reading: DataSettings, chosen: _Chosen) -> dict[str, Any]:
    from studio.backend.classification.file_evaluation import FileTest
    from studio.backend.classification.files import predict_file
    from studio.backend.classification.zero_shot import one_sided
    from studio.backend.data.dataset import column_names

    file = _existing(file)
    names = column_names(file, reading)
    if label_column not in names:
        choice = ", ".join(map(repr, names[:20]))
        raise StudioError(f"{file.name} has no column {label_column!r}. Pass --label-column with one of {choice}.")
    classifier = _classifier(chosen)
    test = FileTest(classifier.problem, classifier.labels, label_column)
    with _interrupted(chosen.cancel):
        report = predict_file(
            file,
            classifier.predict,
            None,
            classifier.labels,
            column,
            chosen.cancel,
            chosen.progress,
            test.add,
            encoding=reading.encoding,
        )
    if chosen.labels:
        report.note(one_sided(report.counts, classifier.labels))
    for sentence in (*report.notices, *map(str, report.bad_rows)):
        print(sentence, file=sys.stderr)
    return test.report(file.name)


def _existing(file: Path) -> Path:
    found = _file(str(file))
    if found is None:
        raise StudioError(f"There is no file {file}. Check its name and folder.")
    return found


def _file(source: str) -> Path | None:
    """Return the path if the source is a file, None if it is a text.

    Raises:
        StudioError: the source looks like a file that does not exist, or is a folder.
    """
    from studio.backend.data import hub_dataset
    from studio.backend.data.file_type import ENDINGS

    if hub_dataset.is_reference(source):
        return hub_dataset.fetch(source)
    path = Path(source)
    try:
        if path.is_file():
            return path
        if path.is_dir() and ("/" in source or not source.strip(".")):
            raise StudioError(f"{source} is a folder. Name one of its files.")
    except OSError:  # too long for a file name
        return None
    if path.suffix.lower() in ENDINGS and not any(letter.isspace() for letter in source):
        raise StudioError(f"There is no file {source}. Check its name and folder.")
    return None


def _classifier(chosen: _Chosen) -> _Classifier:
    return _zero_shot(chosen) if chosen.labels else _trained(chosen)


def _zero_shot(chosen: _Chosen) -> _Classifier:
    """Load the model with the first text. By then the file has been checked, so its errors come before a long load."""
    from studio.backend.adapters.find import find
    from studio.backend.chat.engine import Engine
    from studio.backend.classification.label_prompt import DEFAULT_TEMPLATE, parse_labels
    from studio.backend.classification.zero_shot import LabelTask, ZeroShot

    names = parse_labels(chosen.labels)
    calibrate, cut = chosen.calibrate is not False, cast(Any, chosen.cut or "middle")
    task = LabelTask(names, chosen.template or DEFAULT_TEMPLATE, calibrate, cut)
    trained = None if chosen.adapter is None else find(chosen.adapter).model

    @cache
    def classifier() -> ZeroShot:
        engine = Engine(compile_steps=False)
        engine.load(chosen.model or trained or "starter", chosen.progress, cast(Any, chosen.precision))
        if chosen.adapter is not None:
            engine.load_adapter(chosen.adapter, chosen.adapter)
        return ZeroShot(engine)

    def predict(texts: list[str]) -> Iterator[Prediction]:
        return classifier().predict(texts, task, chosen.adapter, chosen.cancel)

    return _Classifier(predict, task.labels, "single_label")


def _trained(chosen: _Chosen) -> _Classifier:
    from studio.backend.classification.trained import TrainedClassifier
    from studio.backend.classification.trained_predictions import TrainedHead

    assert chosen.adapter is not None
    head = TrainedHead(
        TrainedClassifier.load(chosen.adapter, model=chosen.model, precision=chosen.precision, progress=chosen.progress)
    )
    return _Classifier(lambda texts: head.predict(texts, chosen.cancel), head.labels, head.classifier.problem)


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
    classifier: _Classifier,
    out: Path | None,
    column: str,
    encoding: str,
    chosen: _Chosen,
    as_json: bool,
) -> None:
    from studio.backend.classification.files import predict_file
    from studio.backend.classification.zero_shot import one_sided

    rows: list[dict[str, Any]] = []

    def keep(row: LabelledRow) -> None:
        nothing: dict[str, Any] = {"text": None, "label": None, "confidence": None, "scores": {}}
        rows.append(row.prediction.row() if row.prediction else nothing)

    each = keep if as_json else lambda row: None
    with _interrupted(chosen.cancel):
        report = predict_file(
            file,
            classifier.predict,
            out,
            classifier.labels,
            column,
            chosen.cancel,
            chosen.progress,
            each,
            encoding=encoding,
        )
    if chosen.labels:
        report.note(one_sided(report.counts, classifier.labels))
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
    """Set `cancel` on Ctrl+C, so that finished rows are kept. A second Ctrl+C aborts at once."""

    def stop(*signal_and_frame: object) -> None:
        cancel.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
