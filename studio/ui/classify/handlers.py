"""What the classification tab does: values in, values out. The components are in `tab.py`.

    handlers = ClassifyHandlers(engine)
    for shown in handlers.classify("It rains.", form, session):        # HTML, and a message for the routing panel
    taken = handlers.take(Path("/tmp/gradio/mails.csv"))               # an uploaded file, and its columns
    for shown in handlers.classify_file(form, session):                # HTML, and the id of the file that is written

Closing either iterator, as when the person has left, or `stop` ends the work; what is finished stays.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from studio.backend.adapters.find import choices as adapter_choices
from studio.backend.adapters.uploads import Choice
from studio.backend.classification import evaluation
from studio.backend.classification.file_evaluation import FileTest
from studio.backend.classification.files import FileReport, predict_file
from studio.backend.classification.prediction import LabelledRow, Prediction
from studio.backend.classification.trained import TrainedClassifier
from studio.backend.classification.trained_predictions import TrainedHead
from studio.backend.classification.zero_shot import ZeroShot
from studio.backend.data import uploads
from studio.backend.data.dataset import column_names
from studio.backend.data.formats.labelled import FORMAT as LABELLED
from studio.backend.data.rows import Limits
from studio.backend.hosting import demo
from studio.errors import StudioError
from studio.ui.classify import view
from studio.ui.classify.evaluation import view as evaluation_view
from studio.ui.classify.form import Form, split_texts
from studio.ui.common.downloads import LABELLED_ENDING, labelled_file
from studio.ui.common.picked_adapter import offered
from studio.ui.common.running import Running
from studio.ui.common.trace_store import traces
from studio.ui.routing.routing_panel import message, nothing
from studio.ui.server.identity import Owned

if TYPE_CHECKING:
    from studio.backend.chat.engine import Engine

BUSY = "Texts are still being classified. Stop that, or wait until it is done."
TRAINED = " · trained classifier"
BATCH = 32
"""Texts after which a trained classifier tells how far it is."""
TICK_S = 0.3
SHOWN_ROWS = 20
ONE_BY_ONE = "The routing is shown of one text at a time."
ALONE = "The model alone"


class Shown(NamedTuple):
    result: str
    """HTML."""
    routing: str | None = None
    """A message for the panel; None leaves it as it is."""


class FileShown(NamedTuple):
    html: str
    result: str | None = None
    """The id of the file that is being written, told once."""
    quality: str | None = None
    """How good what classified is on the file's rows, as HTML; None where nothing was measured."""


class Taken(NamedTuple):
    upload: str
    name: str
    columns: list[str]
    column: str | None
    """That of the texts, where its name tells."""
    true_column: str = ""
    """That of the true labels, where its name tells."""

    @property
    def label_columns(self) -> list[str]:
        """Those that may hold the true labels."""
        return [name for name in self.columns if name != self.column]


class ClassifyHandlers(Owned):
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.zero_shot = ZeroShot(engine)
        self._texts, self._files = Running(BUSY), Running(BUSY)

    # --- who classifies

    def choices(self) -> list[tuple[str, str]]:
        """(title, id): the model alone, with an adapter, and the trained classifiers."""
        trained = [(f"{choice.title}{TRAINED}", choice.id) for choice in self._trained()]
        return [*offered(self.engine.status().model_id, self.owner), *trained]

    def is_trained(self, chosen: str) -> bool:
        """Whether its labels were learned."""
        return chosen in [choice.id for choice in self._trained()]

    def _trained(self) -> list[Choice]:
        model_id = self.engine.status().model_id
        return [] if model_id is None else adapter_choices(model_id, "classify", self.owner)

    def _classifier(self, form: Form) -> _Labels | TrainedHead:
        """Raises StudioError: labels or template can't be used, or what is chosen is gone."""
        if self.is_trained(form.by):
            return TrainedHead(TrainedClassifier.load(form.by, self.engine), BATCH)
        if form.by not in [identity for _, identity in self.choices()]:
            raise StudioError("What is chosen under “Classified by” was deleted, or is of another model. Choose again.")
        return _Labels(self.zero_shot, form)

    def quality(self, chosen: str) -> str:
        """How good a trained classifier was on the rows that its run held out, as HTML, or what to do to know."""
        if not self.is_trained(chosen):
            return evaluation_view.waiting()
        try:
            report = evaluation.of_run(chosen)
        except StudioError as error:
            return evaluation_view.problem(str(error))
        if report is None:
            return evaluation_view.waiting(evaluation_view.UNMEASURED)
        return evaluation_view.shown(report, self._title(chosen))

    def _title(self, chosen: str) -> str:
        titles = {identity: title.removesuffix(TRAINED) for title, identity in self.choices()}
        return titles.get(chosen, "") if chosen else ALONE

    # --- texts

    def classify(self, text: str, form: Form, session: str) -> Iterator[Shown]:
        """What is classified so far, at last all of it.

        Raises:
            StudioError: texts, labels or template can't be used, or no model is ready.
        """
        texts = split_texts(text, form.one_a_line)
        with self._texts.answer(session) as run:
            classifier = self._classifier(form)
            single = len(texts) == 1
            yield Shown(view.waiting("Classifying …", busy=True), nothing("" if single else ONE_BY_ONE))
            done: list[Prediction] = []
            told = time.monotonic()
            try:
                for prediction in classifier.predict(texts, run.cancel, with_trace=single):
                    done.append(prediction)
                    if time.monotonic() - told > TICK_S and len(done) < len(texts):
                        yield Shown(view.shown(done, f"{len(done)} of {len(texts)} texts …"))
                        told = time.monotonic()
            except Exception:
                yield Shown(view.shown(done) if done else view.waiting())
                raise
        # By now the next one may begin, even before the page has taken this.
        stopped = "" if len(done) == len(texts) else f"Stopped: {len(done)} of {len(texts)} texts are classified."
        yield Shown(view.shown(done, stopped), _routing(done, self.owner) if single else None)

    def stop(self, session: str) -> None:
        self._texts.stop(session)

    # --- a file

    def take(self, file: Path) -> Taken:
        """Keeps an uploaded file.

        Raises:
            StudioError: it is too large, or nothing of it can be read.
        """
        upload = uploads.keep(file, self.owner)
        return self._taken(upload, file.name[:80])

    def taken(self, form: Form) -> Taken | None:
        """The file of an earlier visit, where it is still there."""
        try:
            taken = self._taken(form.upload, form.file) if form.upload else None
        except StudioError:
            return None
        if taken is None:
            return None
        taken = taken._replace(column=form.column if form.column in taken.columns else taken.column)
        return taken._replace(true_column=form.true_column if form.true_column in taken.label_columns else "")

    def _taken(self, upload: str, name: str) -> Taken:
        columns = column_names(uploads.find(upload, self.owner))
        column = _named_like("text", columns) or (columns[0] if len(columns) == 1 else None)
        taken = Taken(upload, name, columns, column)
        return taken._replace(true_column=_named_like("label", taken.label_columns) or "")

    def classify_file(self, form: Form, session: str) -> Iterator[FileShown]:
        """How far it is, with the first rows, and at last the report and the download.

        Raises:
            StudioError: there is no file, its two columns are one, or labels or template can't be used. What goes wrong
                later is part of what is shown, beside the rows that are finished.
        """
        if not form.upload:
            raise StudioError("There is no file to classify. Upload one first.")
        if form.true_column and form.true_column == form.column:
            raise StudioError(f"{form.column!r} holds the texts: choose another column of the true labels, or none.")
        source = uploads.find(form.upload, self.owner)
        with self._files.answer(session) as run:
            classifier = self._classifier(form)
            # Beside the uploads, with which it is deleted after a day.
            folder = uploads.new_folder(self.owner)
            result = folder.name
            yield FileShown(view.waiting("Reading the file …", busy=True), result)
            test = _test(classifier, form.true_column)
            job = _FileJob(source, folder / f"{source.stem}{LABELLED_ENDING}", form.column, run.cancel, test)
            with closing(job.watched(classifier)) as watched:
                for html in watched:
                    yield FileShown(html)
            report, measured = job.measured()
            quality = None if report is None else self._of_file(report, form.by)
            yield FileShown(job.ended(result, measured), quality=quality)

    def _of_file(self, report: evaluation.Report, by: str) -> str:
        """With what is known of the classifier from its training below."""
        title = self._title(by)
        here = evaluation_view.shown(report, title)
        try:
            trained = evaluation.of_run(by) if self.is_trained(by) else None
        except StudioError as error:
            return here + evaluation_view.problem(str(error))
        return here if trained is None else here + evaluation_view.beside(trained, title)

    def stop_file(self, session: str) -> None:
        self._files.stop(session)

    def earlier(self, result: object) -> str:
        """The file that an earlier visit left, as HTML; nothing where there is none."""
        file = labelled_file(result, self.owner)
        return "" if file is None else view.earlier(file.name, str(result))


class _Labels:
    """Zero-shot: the model is asked about the labels."""

    def __init__(self, zero_shot: ZeroShot, form: Form) -> None:
        self.zero_shot, self.task, self.by = zero_shot, form.task(), form.by or None
        self.labels = self.task.labels

    def predict(self, texts: Sequence[str], cancel: threading.Event, with_trace: bool = False) -> Iterator[Prediction]:
        return self.zero_shot.predict(texts, self.task, self.by, cancel, with_trace)


def _named_like(field: str, columns: Sequence[str]) -> str | None:
    """The column whose name tells that it is this field of labelled texts."""
    known = {column.strip().casefold(): column for column in columns}
    return next((known[name] for name in LABELLED.fields[field] if name in known), None)


def _test(classifier: _Labels | TrainedHead, column: str) -> FileTest | None:
    if not column:
        return None
    problem = classifier.classifier.problem if isinstance(classifier, TrainedHead) else "single_label"
    return FileTest(problem, classifier.labels, column)


def _routing(done: list[Prediction], owner: str) -> str | None:
    if not done:
        return None
    trace = done[0].trace
    if trace is None:
        return nothing()
    return message(traces.open(trace, owner), trace, 0, 0, 0, picked=True)


@dataclass
class _FileJob:
    source: Path
    out: Path
    column: str
    cancel: threading.Event
    test: FileTest | None = None
    """Where the file has true labels."""
    first: list[LabelledRow] = field(default_factory=list)
    """The first rows that are finished."""
    fraction: float = 0.0
    text: str = ""
    report: FileReport | None = None
    problem: str = ""

    def watched(self, classifier: _Labels | TrainedHead) -> Generator[str]:
        """How far it is, until it ends; closing the iterator cancels it."""
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(self._run, classifier)
            try:
                while not future.done():
                    # Also where nothing is new: only who tells something finds out that the person has left.
                    yield view.progress(self.fraction, self.text, self.first)
                    wait([future], TICK_S)
                self.report = future.result()
            except StudioError as error:
                self.problem = str(error)
            finally:
                self.cancel.set()

    def measured(self) -> tuple[evaluation.Report | None, str]:
        """How good the finished rows are, and that in a sentence, or why it can't be said."""
        if self.test is None or not self.first:
            return None, ""
        try:
            report = self.test.report(self.source.name)
        except StudioError as error:
            return None, str(error)
        return report, evaluation_view.in_a_sentence(report)

    def ended(self, result: str, measured: str) -> str:
        """What came out; a file without a row is not kept."""
        if not self.first:
            shutil.rmtree(self.out.parent, ignore_errors=True)
        return view.ended(self.report, self.problem, self.first, self.out.name, result, measured)

    def _run(self, classifier: _Labels | TrainedHead) -> FileReport:
        return predict_file(
            self.source,
            lambda texts: classifier.predict(texts, self.cancel),
            self.out,
            classifier.labels,
            self.column,
            self.cancel,
            self._progress,
            self._row,
            Limits(rows=limits.rows) if (limits := demo.limits()) else None,
        )

    def _progress(self, fraction: float, text: str) -> None:
        self.fraction, self.text = fraction, text

    def _row(self, row: LabelledRow) -> None:
        if len(self.first) < SHOWN_ROWS:
            self.first.append(row)
        if self.test is not None:
            self.test.add(row)
