"""Handlers of the Classify tab: plain values in, plain values out. The components are in `tab.py`.

    handlers = ClassifyHandlers(engine)
    for shown in handlers.classify("It rains.", form, session):        # HTML, and a message for the routing panel
    taken = handlers.take(Path("/tmp/gradio/mails.csv"))               # an uploaded file, and its columns
    for shown in handlers.classify_file(form, session):                # HTML, and the id of the result file

Closing an iterator, as when the user leaves, or calling `stop` or `stop_file` ends the work; finished results are kept.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from studio.backend.adapters.find import choices as adapter_choices
from studio.backend.adapters.uploads import Choice
from studio.backend.classification import evaluation
from studio.backend.classification.file_evaluation import FileTest
from studio.backend.classification.files import FileReport, predict_file
from studio.backend.classification.prediction import LabelledRow, Prediction
from studio.backend.classification.trained import TrainedClassifier
from studio.backend.classification.trained_predictions import TrainedHead
from studio.backend.classification.zero_shot import ZeroShot, one_sided
from studio.backend.data import uploads
from studio.backend.data.dataset import DataSettings, first_rows
from studio.backend.data.detection import text_lengths
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

BUSY = "Texts are still being classified. Stop the classification or wait until it is done."
TRAINED = " · trained classifier"
BATCH = 32
"""Texts per progress update of a trained classifier."""
TICK_S = 0.3
SHOWN_ROWS = 20
ONE_BY_ONE = "Routing is shown for a single text only."
ALONE = "Base model (zero-shot)"


class Shown(NamedTuple):
    result: str
    """HTML."""
    routing: str | None = None
    """Message for the routing panel; None leaves the panel unchanged."""


class FileShown(NamedTuple):
    html: str
    result: str | None = None
    """Id of the result file; sent once."""
    quality: str | None = None
    """Evaluation on the file's rows as HTML; None if nothing was measured."""


class Taken(NamedTuple):
    upload: str
    name: str
    columns: list[str]
    column: str | None
    """Text column, if its name is recognised."""
    true_column: str = ""
    """Label column, if its name is recognised."""
    encoding: str = "auto"

    @property
    def label_columns(self) -> list[str]:
        """Return the columns that may hold the true labels."""
        return [name for name in self.columns if name != self.column]


class ClassifyHandlers(Owned):
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.zero_shot = ZeroShot(engine)
        self._texts, self._files = Running(BUSY), Running(BUSY)

    # --- classifiers

    def choices(self) -> list[tuple[str, str]]:
        """Return (title, id) of the base model, its adapters and the trained classifiers."""
        trained = [(f"{choice.title}{TRAINED}", choice.id) for choice in self._trained()]
        return [*offered(self.engine.status().model_id, self.owner), *trained]

    def is_trained(self, chosen: str) -> bool:
        """Return whether the choice is a trained classifier, which has its own labels."""
        return chosen in [choice.id for choice in self._trained()]

    def _trained(self) -> list[Choice]:
        model_id = self.engine.status().model_id
        return [] if model_id is None else adapter_choices(model_id, "classify", self.owner)

    def _classifier(self, form: Form) -> _Labels | TrainedHead:
        """Raise StudioError if labels or template are invalid, or the selected classifier does not exist."""
        if self.is_trained(form.by):
            return TrainedHead(TrainedClassifier.load(form.by, self.engine), BATCH)
        if form.by not in [identity for _, identity in self.choices()]:
            raise StudioError(
                "The selected classifier was deleted or belongs to another model. Select another under “Classifier”."
            )
        return _Labels(self.zero_shot, form)

    def quality(self, chosen: str) -> str:
        """Return a trained classifier's evaluation on its held-out rows as HTML, or a hint how to get one."""
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
        """Yield the results so far, and finally all of them.

        Raises:
            StudioError: the texts, labels or template are invalid, or no model is ready.
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
                    if run.discarded:
                        continue
                    if time.monotonic() - told > TICK_S and len(done) < len(texts):
                        yield Shown(view.shown(done, f"{len(done)} of {len(texts)} texts …"))
                        told = time.monotonic()
            except Exception:
                yield Shown(view.shown(done) if done else view.waiting())
                raise
        if run.discarded:
            return
        # Outside of `with`, so that the next request may start before the page has received this.
        stopped = "" if len(done) == len(texts) else f"Stopped: {len(done)} of {len(texts)} texts classified."
        notices = classifier.notices(Counter(each.label for each in done)) if isinstance(classifier, _Labels) else []
        yield Shown(view.shown(done, stopped, notices), _routing(done, self.owner) if single else None)

    def stop(self, session: str, discard: bool = False) -> None:
        """Stop classifying texts.

        Args:
            discard: other texts are classified instead, so the page must not get the results.
        """
        self._texts.stop(session, discard)

    def is_busy(self, session: str) -> bool:
        return self._texts.is_busy(session)

    # --- a file

    def take(self, file: Path) -> Taken:
        """Store an uploaded file.

        Raises:
            StudioError: it is too large, or can't be read.
        """
        upload = uploads.keep(file, self.owner)
        return self._taken(upload, file.name[:80])

    def taken(self, form: Form) -> Taken | None:
        """Return the file of an earlier visit, if it still exists."""
        try:
            taken = self.decoded(form) if form.upload else None
        except StudioError:
            return None
        if taken is None:
            return None
        taken = taken._replace(column=form.column if form.column in taken.columns else taken.column)
        return taken._replace(true_column=form.true_column if form.true_column in taken.label_columns else "")

    def decoded(self, form: Form) -> Taken:
        """Return the uploaded file as it is read in the form's encoding.

        Raises:
            StudioError: it can't be read, or there is no such encoding.
        """
        return self._taken(form.upload, form.file, form.encoding)

    def _taken(self, upload: str, name: str, encoding: str = "auto") -> Taken:
        rows = first_rows(uploads.find(upload, self.owner), DataSettings(encoding=encoding))
        columns = list(dict.fromkeys(chain(*rows)))
        taken = Taken(upload, name, columns, _text_column(columns, rows), encoding=encoding)
        return taken._replace(true_column=_named_like("label", taken.label_columns) or "")

    def classify_file(self, form: Form, session: str) -> Iterator[FileShown]:
        """Yield the progress with the first rows, and finally the report and the download.

        Raises:
            StudioError: there is no file, both columns are the same, or labels or template are invalid. Later problems
                are shown together with the finished rows.
        """
        if not form.upload:
            raise StudioError("There is no file to classify. Upload one first.")
        if form.true_column and form.true_column == form.column:
            raise StudioError(f"{form.column!r} is the text column. Choose another label column, or none.")
        source = uploads.find(form.upload, self.owner)
        with self._files.answer(session) as run:
            classifier = self._classifier(form)
            # Stored with the uploads, so that it is deleted with them after a day.
            folder = uploads.new_folder(self.owner)
            result = folder.name
            yield FileShown(view.waiting("Reading the file …", busy=True), result)
            test = _test(classifier, form.true_column)
            job = _FileJob(
                source, folder / f"{source.stem}{LABELLED_ENDING}", form.column, run.cancel, test, form.encoding
            )
            with closing(job.watched(classifier)) as watched:
                for html in watched:
                    yield FileShown(html)
            report, measured = job.measured()
            quality = None if report is None else self._of_file(report, form.by)
            yield FileShown(job.ended(result, measured), quality=quality)

    def _of_file(self, report: evaluation.Report, by: str) -> str:
        """Return the evaluation on the file, followed by the one from the classifier's training."""
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
        """Return the result file of an earlier visit as HTML, or "" if there is none."""
        file = labelled_file(result, self.owner)
        return "" if file is None else view.earlier(file.name, str(result))


class _Labels:
    """Zero-shot classifier: the language model scores the labels."""

    def __init__(self, zero_shot: ZeroShot, form: Form) -> None:
        self.zero_shot, self.task, self.by = zero_shot, form.task(), form.by or None
        self.labels = self.task.labels

    def notices(self, counts: Mapping[str, int]) -> list[str]:
        return one_sided(counts, self.labels)

    def predict(self, texts: Sequence[str], cancel: threading.Event, with_trace: bool = False) -> Iterator[Prediction]:
        return self.zero_shot.predict(texts, self.task, self.by, cancel, with_trace)


def _named_like(field: str, columns: Sequence[str]) -> str | None:
    """Return the column whose name matches a field of the labelled format."""
    known = {column.strip().casefold(): column for column in columns}
    return next((known[name] for name in LABELLED.fields[field] if name in known), None)


def _text_column(columns: list[str], rows: list[dict[str, Any]]) -> str | None:
    """Return the column of the texts: by its name, or because its texts are much longer than those of the others."""
    if named := _named_like("text", columns):
        return named
    if len(columns) == 1:
        return columns[0]
    lengths = text_lengths([name for name in columns if name != _named_like("label", columns)], rows)
    longest = max(lengths, key=lambda name: lengths[name], default="")
    others = [length for name, length in lengths.items() if name != longest]
    return longest if longest and all(lengths[longest] > 2 * length for length in others) else None


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
    """Set if the file has true labels."""
    encoding: str = "auto"
    first: list[LabelledRow] = field(default_factory=list)
    """The first finished rows."""
    fraction: float = 0.0
    text: str = ""
    report: FileReport | None = None
    problem: str = ""

    def watched(self, classifier: _Labels | TrainedHead) -> Generator[str]:
        """Yield the progress until the job ends; closing the iterator cancels it."""
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(self._run, classifier)
            try:
                while not future.done():
                    # Yield even without news, because only a yield detects that the user has left.
                    yield view.progress(self.fraction, self.text, self.first)
                    wait([future], TICK_S)
                self.report = future.result()
            except StudioError as error:
                self.problem = str(error)
            finally:
                self.cancel.set()

    def measured(self) -> tuple[evaluation.Report | None, str]:
        """Return the evaluation of the finished rows and a sentence about it, or about why there is none."""
        if self.test is None or not self.first:
            return None, ""
        try:
            report = self.test.report(self.source.name)
        except StudioError as error:
            return None, str(error)
        return report, evaluation_view.in_a_sentence(report)

    def ended(self, result: str, measured: str) -> str:
        """Return the result as HTML; delete the result file if it has no rows."""
        if not self.first:
            shutil.rmtree(self.out.parent, ignore_errors=True)
        return view.ended(self.report, self.problem, self.first, self.out.name, result, measured)

    def _run(self, classifier: _Labels | TrainedHead) -> FileReport:
        report = predict_file(
            self.source,
            lambda texts: classifier.predict(texts, self.cancel),
            self.out,
            classifier.labels,
            self.column,
            self.cancel,
            self._progress,
            self._row,
            Limits(rows=limits.rows) if (limits := demo.limits()) else None,
            self.encoding,
        )
        if isinstance(classifier, _Labels):
            report.note(classifier.notices(report.counts))
        return report

    def _progress(self, fraction: float, text: str) -> None:
        self.fraction, self.text = fraction, text

    def _row(self, row: LabelledRow) -> None:
        if len(self.first) < SHOWN_ROWS:
            self.first.append(row)
        if self.test is not None:
            self.test.add(row)
