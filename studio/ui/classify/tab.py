"""The classification tab: what texts are asked about on the left, texts or a file and what came out on the right."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr

from studio.backend.classification.label_prompt import LONGEST_TEMPLATE, MOST_LABELS, TEMPLATES
from studio.errors import StudioError
from studio.ui.classify import view
from studio.ui.classify.evaluation import view as evaluation_view
from studio.ui.classify.form import EXAMPLES, OWN, PRESETS, Form, read_form, template_name
from studio.ui.classify.handlers import ClassifyHandlers, FileShown, Shown, Taken
from studio.ui.common import browser
from studio.ui.common.handed_draft import handed_draft
from studio.ui.common.picked_adapter import NONE, still_listed
from studio.ui.common.shown_errors import shows_errors
from studio.ui.routing.routing_panel import nothing, routing_panel

if TYPE_CHECKING:
    from studio.backend.chat.engine import Engine
    from studio.backend.training.queue import Jobs

ROUTING_HINT = "Every token of a text appears here, with the experts that read it."
NO_COLUMN = ("none", "")
NAMES = [field.name for field in fields(Form)]
# In the browser, so that no key that is pressed waits for the server.
REMEMBER = f"(...values) => Object.fromEntries({NAMES}.map((name, i) => [name, values[i]]))"

TEMPLATE_NAME = f"(text) => ({json.dumps({text: name for name, text in TEMPLATES.items()})})[text] ?? {json.dumps(OWN)}"


class Kept(NamedTuple):
    form: gr.BrowserState
    result: gr.BrowserState
    """The id of the file that was classified last."""


@dataclass(frozen=True)
class Tab:
    id: str
    title: str
    order: int

    def keep(self) -> Kept:
        return Kept(browser.kept({}, "jetmoe-studio-classify"), browser.kept("", "jetmoe-studio-classified"))

    def build(self, engine: Engine, jobs: Jobs, kept: Kept) -> None:
        handlers = ClassifyHandlers(engine)
        page = _Page(kept)
        _wire_form(page, handlers.of)
        _wire_texts(page, handlers.of)
        _wire_file(page, handlers.of)


TAB = Tab("classify", "Classify", order=15)


class _Page:
    """The components, in the order in which they stand on the page."""

    def __init__(self, kept: Kept) -> None:
        self.kept, self.default = kept, Form()
        self.handed = handed_draft()
        self.listed = gr.State([(NONE.title, NONE.id)])
        # In the page, not in gr.State, which a restart of the server forgets.
        self.upload, self.file = (gr.Textbox(visible="hidden") for _ in range(2))
        with gr.Row(elem_classes="columns", equal_height=False):
            with gr.Column(scale=4, min_width=320):
                self._asked()
            with gr.Column(scale=6, min_width=320), gr.Tabs(elem_id="classify-parts"):
                with gr.Tab("Texts", id="texts"):
                    self._texts()
                with gr.Tab("A file", id="file"):
                    self._file()
                with gr.Tab(evaluation_view.NAME, id="quality"):
                    self.quality = gr.HTML(
                        evaluation_view.waiting(), elem_id="classify-quality", js_on_load=evaluation_view.script(),
                    )  # fmt: skip

    def _asked(self) -> None:
        self.by = gr.Dropdown(
            [(NONE.title, NONE.id)], value=NONE.id, label="Classified by", filterable=False, elem_id="classify-by",
            info="The model needs no training for this; trained classifiers are made under Fine-tune.",
        )  # fmt: skip
        self.learned = gr.Markdown(
            "This classifier knows its labels: it was trained on them.", visible="hidden", elem_classes="hint",
        )  # fmt: skip
        with gr.Column(elem_id="classify-asked") as self.asked:
            self.preset = gr.Dropdown(
                [(f"{preset.title}: {preset.labels}", i) for i, preset in enumerate(PRESETS)], value=None,
                label="Start from a preset", info="Sets labels and template.", filterable=False,
                elem_id="classify-preset",
            )  # fmt: skip
            self.labels = gr.Textbox(
                self.default.labels, label="Labels", lines=2, max_lines=8, elem_id="classify-labels",
                info=f"Separated by commas or lines, 2 to {MOST_LABELS}. Plain words work best: the model reads them.",
            )  # fmt: skip
            with gr.Accordion("How the model is asked", open=False, elem_id="classify-how"):
                self.template = gr.Dropdown(
                    [*TEMPLATES, OWN], value=template_name(self.default.template), label="Template",
                    filterable=False, elem_id="classify-template",
                )  # fmt: skip
                self.template_text = gr.Textbox(
                    self.default.template, label="Its text", lines=4, max_lines=12, max_length=LONGEST_TEMPLATE,
                    elem_id="classify-template-text",
                    info="{text} is where the text goes, exactly once; {labels} where the labels are listed.",
                )  # fmt: skip
                self.calibrate = gr.Checkbox(
                    self.default.calibrate, label="Calibrate", elem_id="classify-calibrate",
                    info="Subtracts what each label gets where a text says nothing; helps against a favourite label.",
                )  # fmt: skip

    def _texts(self) -> None:
        self.box = gr.Textbox(
            label="Text", placeholder="Write or paste a text …", lines=1, max_lines=12, elem_id="classify-box",
            info="Enter classifies it, Shift and Enter begins a new line.",
        )  # fmt: skip
        self.one_a_line = gr.Checkbox(self.default.one_a_line, label="One text a line", elem_id="classify-lines")
        with gr.Row(elem_classes="buttons"):
            self.go = gr.Button("Classify", variant="primary", elem_id="classify-go")
            self.stop = gr.Button("Stop", interactive=False, elem_id="classify-stop")
        self.result = gr.HTML(view.waiting(), elem_id="classify-result", js_on_load=None)
        self.examples = gr.Dataset(
            label="Examples", components=["textbox"], samples=[[example.text] for example in EXAMPLES], type="index",
            elem_id="classify-examples",
        )  # fmt: skip
        self.routing = routing_panel("classify-routing", of="prompt")
        self.routing.value = nothing(ROUTING_HINT)

    def _file(self) -> None:
        self.bring = browser.upload_button("classify-upload")
        self.column = gr.Dropdown(
            [], value=None, label="Column of the texts", visible=False, allow_custom_value=True,
            elem_id="classify-column",
        )  # fmt: skip
        self.true_column = gr.Dropdown(
            [NO_COLUMN], value="", label="Column of the true labels (optional)", visible=False,
            allow_custom_value=True, elem_id="classify-true-column",
            info=f"By it the labels that are found are measured: see “{evaluation_view.NAME}”.",
        )  # fmt: skip
        with gr.Row(elem_classes="buttons"):
            self.file_go = gr.Button("Classify the file", variant="primary", elem_id="classify-file-go")
            self.cancel = gr.Button("Cancel", interactive=False, elem_id="classify-cancel")
            self.train = gr.Button("Train a classifier on this file", visible=False, elem_id="classify-train")
        self.file_result = gr.HTML(view.waiting(view.FILE_HINT), elem_id="classify-file-result", js_on_load=None)
        gr.Markdown(
            "The result has all columns of the file, with label, confidence and the share of every label beside them. "
            "It stays here for a day; leaving the page ends the work and keeps what is finished.", elem_classes="hint",
        )  # fmt: skip

    def form(self) -> list[Any]:
        """In the order of the fields of `Form`."""
        asked = [self.labels, self.template_text, self.calibrate, self.one_a_line, self.by]
        return [*asked, self.upload, self.file, self.column, self.true_column]

    def file_controls(self) -> list[Any]:
        """In the order of `_file_controls`."""
        return [self.upload, self.file, self.bring, self.column, self.true_column, self.train]


def _form(values: tuple[Any, ...]) -> Form:
    return read_form(dict(zip(NAMES, values, strict=True)))


QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
AT_ONCE: dict[str, Any] = {**QUIET, "queue": False}


def _wire_form(page: _Page, handlers_of: Callable[[gr.Request], ClassifyHandlers]) -> None:
    def arranged(request: gr.Request, by: str) -> tuple[Any, Any]:
        """Labels and template, and the sentence in their place."""
        trained = handlers_of(request).is_trained(by)
        return gr.update(visible="hidden" if trained else True), gr.update(visible=True if trained else "hidden")

    @shows_errors
    def start_from(number: Any) -> tuple[Any, ...]:
        if type(number) is not int or not 0 <= number < len(PRESETS):
            return gr.skip(), gr.skip()
        return PRESETS[number].labels, TEMPLATES[PRESETS[number].template]

    @shows_errors
    def choose_template(name: str) -> Any:
        return TEMPLATES.get(name, gr.skip())

    @shows_errors
    def arrange(request: gr.Request, by: str) -> tuple[Any, ...]:
        return *arranged(request, by), handlers_of(request).quality(by)

    @shows_errors
    def open_list(request: gr.Request, listed: list[tuple[str, str]]) -> Any:
        choices = still_listed(handlers_of(request).choices(), listed)
        return (gr.skip(), gr.skip()) if choices == listed else (gr.update(choices=choices), choices)

    @shows_errors
    def open_page(request: gr.Request, stored: Any, result: Any) -> list[Any]:
        try:
            form = read_form(stored)
        except StudioError:
            form = Form()
        handlers = handlers_of(request)
        if asked := request.query_params.get("classifier"):
            form = replace(form, by=asked)
        choices = still_listed(handlers.choices(), [])
        by = form.by if form.by in [identity for _, identity in choices] else NONE.id
        taken = handlers.taken(form)
        file = _file_controls(taken) if taken else ["", "", *(gr.skip() for _ in page.file_controls()[2:])]
        earlier, hint = handlers.earlier(result), view.waiting(view.READY if taken else view.FILE_HINT)
        return [
            form.labels, form.template, template_name(form.template), form.calibrate, form.one_a_line,
            gr.update(choices=choices, value=by), choices, *arranged(request, by), handlers.quality(by), *file,
            earlier or hint,
        ]  # fmt: skip

    # Not "input", which Gradio's text boxes tell of keys alone, not of what is pasted or deleted.
    gr.on(
        [control.change for control in page.form()], None, page.form(), page.kept.form, js=REMEMBER,
        trigger_mode="multiple", **QUIET,
    )  # fmt: skip
    page.template_text.change(None, page.template_text, page.template, js=TEMPLATE_NAME, **QUIET)
    page.preset.input(start_from, page.preset, [page.labels, page.template_text], preprocess=False, **AT_ONCE)
    page.template.input(choose_template, page.template, page.template_text, **AT_ONCE)
    page.by.input(arrange, page.by, [page.asked, page.learned, page.quality], preprocess=False, **AT_ONCE)
    page.by.focus(open_list, page.listed, [page.by, page.listed], **AT_ONCE)
    opened = [
        page.labels, page.template_text, page.template, page.calibrate, page.one_a_line, page.by, page.listed,
        page.asked, page.learned, page.quality, *page.file_controls(), page.file_result,
    ]  # fmt: skip
    # What the address named is chosen by now; a refresh must not undo a later choice.
    browser.page().load(open_page, list(page.kept), opened, **AT_ONCE).then(
        None, page.listed, page.listed, js=browser.forgetting("classifier"), **AT_ONCE
    )
    page.bring.upload(_taking(handlers_of), page.bring, [*page.file_controls(), page.file_result], **QUIET)


def _taking(handlers_of: Callable[[gr.Request], ClassifyHandlers]) -> Any:
    @shows_errors
    def take(request: gr.Request, file: str) -> list[Any]:
        return [*_file_controls(handlers_of(request).take(Path(file))), view.waiting(view.READY)]

    return take


def _file_controls(taken: Taken) -> list[Any]:
    """New values of the upload's id and name, of its button, of the columns, and of what trains on them."""
    label = f"Column of the texts in {taken.name}"
    column = gr.update(choices=taken.columns, value=taken.column, visible=True, label=label)
    button = gr.update(label="Upload another file")
    true_column = gr.update(choices=[NO_COLUMN, *taken.label_columns], value=taken.true_column, visible=True)
    return [taken.upload, taken.name, button, column, true_column, gr.update(visible=True)]


def _wire_texts(page: _Page, handlers_of: Callable[[gr.Request], ClassifyHandlers]) -> None:
    shown = [page.result, page.routing, page.stop]

    @shows_errors
    def classify(request: gr.Request, text: Any, *values: Any) -> Iterator[tuple[Any, ...]]:
        for now in handlers_of(request).classify(text, _form(values), browser.session(request)):
            yield _texts(now)

    @shows_errors
    def fill(number: Any) -> tuple[Any, ...]:
        if type(number) is not int or not 0 <= number < len(EXAMPLES):
            raise StudioError("There is no such example. Reload the page.")
        example = EXAMPLES[number]
        return example.text, example.labels, TEMPLATES[example.template], False

    @shows_errors
    def stop(request: gr.Request) -> None:
        handlers_of(request).stop(browser.session(request))

    # Unprocessed: what is wrong with a value is said in the studio's own words. Multiple: who asks while texts are
    # classified is told so, where Gradio would do nothing.
    working: dict[str, Any] = {
        "fn": classify, "inputs": [page.box, *page.form()], "outputs": shown, "preprocess": False,
        "concurrency_limit": 8, "concurrency_id": "classify", "trigger_mode": "multiple", **QUIET,
    }  # fmt: skip
    idle: dict[str, Any] = {"fn": lambda: gr.update(interactive=False), "inputs": None, "outputs": page.stop, **AT_ONCE}
    gr.on([page.box.submit, page.go.click], **working).then(**idle)
    filled = [page.box, page.labels, page.template_text, page.one_a_line]
    page.examples.click(fill, page.examples, filled, **QUIET).success(**working).then(**idle)
    page.stop.click(stop, None, None, **AT_ONCE)


def _texts(now: Shown) -> tuple[Any, ...]:
    return now.result, gr.skip() if now.routing is None else now.routing, gr.update(interactive=True)


def _wire_file(page: _Page, handlers_of: Callable[[gr.Request], ClassifyHandlers]) -> None:
    @shows_errors
    def classify_file(request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
        for now in handlers_of(request).classify_file(_form(values), browser.session(request)):
            yield _file(now)

    @shows_errors
    def cancel(request: gr.Request) -> None:
        handlers_of(request).stop_file(browser.session(request))

    @shows_errors
    def choose_column(request: gr.Request, *values: Any) -> Any:
        """What holds the texts holds no labels. Another choice is left alone: by now it may be a newer one."""
        form = _form(values)
        taken = handlers_of(request).taken(form)
        if taken is None:
            return gr.skip()
        choices = [NO_COLUMN, *taken.label_columns]
        return gr.update(choices=choices, value="") if form.true_column == form.column else gr.update(choices=choices)

    @shows_errors
    def train(*values: Any) -> Any:
        return _form(values).training_data()

    page.file_go.click(
        classify_file, page.form(), [page.file_result, page.kept.result, page.quality, page.cancel], preprocess=False,
        concurrency_limit=4, concurrency_id="classify-file", **QUIET,
    ).then(lambda: gr.update(interactive=False), None, page.cancel, **AT_ONCE)  # fmt: skip
    page.cancel.click(cancel, None, None, **AT_ONCE)
    page.column.input(choose_column, page.form(), page.true_column, preprocess=False, **AT_ONCE)
    page.train.click(train, page.form(), page.handed, preprocess=False, **QUIET)


def _file(now: FileShown) -> tuple[Any, ...]:
    told = (gr.skip() if each is None else each for each in (now.result, now.quality))
    return now.html, *told, gr.update(interactive=True)
