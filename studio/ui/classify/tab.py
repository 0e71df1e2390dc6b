"""The Classify tab: settings on the left; texts, files and results on the right."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr

from studio.backend.classification.label_prompt import LONGEST_TEMPLATE, MOST_LABELS, TEMPLATES
from studio.ui.classify import view
from studio.ui.classify.evaluation import view as evaluation_view
from studio.ui.classify.events import ClassifyEvents
from studio.ui.classify.form import EXAMPLES, NAMES, NO_COLUMN, OWN, PRESETS, Form, template_name
from studio.ui.common import browser
from studio.ui.common.handed_draft import handed_draft
from studio.ui.common.listeners import AT_ONCE, CLASSIFYING, QUIET
from studio.ui.common.picked_adapter import NONE
from studio.ui.routing.routing_panel import nothing, routing_panel
from studio.ui.server.fair_queue import long
from studio.ui.server.scripts import mounting

if TYPE_CHECKING:
    from studio.backend.chat.engine import Engine
    from studio.backend.training.queue import Jobs

ROUTING_HINT = "The tokens of a text appear here with the experts that process them."
# Runs in the browser, so that typing does not wait for the server.
REMEMBER = f"(...values) => Object.fromEntries({NAMES}.map((name, i) => [name, values[i]]))"

TEMPLATE_NAME = f"(text) => ({json.dumps({text: name for name, text in TEMPLATES.items()})})[text] ?? {json.dumps(OWN)}"


class Kept(NamedTuple):
    form: gr.BrowserState
    result: gr.BrowserState
    """Id of the last classified file."""


@dataclass(frozen=True)
class Tab:
    id: str
    title: str
    order: int

    def keep(self) -> Kept:
        return Kept(browser.kept({}, "jetmoe-studio-classify"), browser.kept("", "jetmoe-studio-classified"))

    def build(self, engine: Engine, jobs: Jobs, kept: Kept) -> None:
        page, events = _Page(kept), ClassifyEvents(engine)
        _wire_form(page, events)
        _wire_texts(page, events)
        _wire_file(page, events)


TAB = Tab("classify", "Classify", order=15)


class _Page:
    """The components, in page order."""

    def __init__(self, kept: Kept) -> None:
        self.kept, self.default = kept, Form()
        self.handed = handed_draft()
        self.listed = gr.State([(NONE.title, NONE.id)])
        # Hidden text boxes, because gr.State is lost when the server restarts.
        self.upload, self.file = (gr.Textbox(visible="hidden") for _ in range(2))
        with gr.Row(elem_classes="columns", equal_height=False):
            with gr.Column(scale=4, min_width=320, elem_id="classify-settings"):
                self._asked()
            with gr.Column(scale=6, min_width=320), gr.Tabs(elem_id="classify-parts"):
                with gr.Tab("Texts", id="texts"):
                    self._texts()
                with gr.Tab("File", id="file"):
                    self._file()
                with gr.Tab(evaluation_view.NAME, id="quality"):
                    self.quality = gr.HTML(
                        evaluation_view.waiting(), elem_id="classify-quality",
                        js_on_load=mounting("classify/evaluation/evaluation.js"),
                    )  # fmt: skip

    def _asked(self) -> None:
        self.by = gr.Dropdown(
            [(NONE.title, NONE.id)], value=NONE.id, label="Classifier", filterable=False, elem_id="classify-by",
            info="The base model needs no training. Train a classifier under “Fine-tune”.",
        )  # fmt: skip
        # Its value hides what is below, by CSS: Gradio loses a change of visibility in a tab that is just opening.
        self.learned = gr.HTML("", elem_id="classify-learned", js_on_load=None)
        with gr.Column(elem_id="classify-asked"):
            self.preset = gr.Dropdown(
                [(f"{preset.title}: {preset.labels}", i) for i, preset in enumerate(PRESETS)], value=None,
                label="Preset", info="Sets the labels and the template.", filterable=False,
                elem_id="classify-preset",
            )  # fmt: skip
            self.labels = gr.Textbox(
                self.default.labels, label="Labels", lines=2, max_lines=8, elem_id="classify-labels",
                info=f"2 to {MOST_LABELS}, separated by commas or lines. Plain words work best.",
            )  # fmt: skip
            with gr.Accordion("Prompt template", open=False, elem_id="classify-how"):
                self.template = gr.Dropdown(
                    [*TEMPLATES, OWN], value=template_name(self.default.template), label="Template",
                    filterable=False, elem_id="classify-template",
                )  # fmt: skip
                self.template_text = gr.Textbox(
                    self.default.template, label="Template text", lines=4, max_lines=12, max_length=LONGEST_TEMPLATE,
                    elem_id="classify-template-text",
                    info="{text} is replaced by the text (use it exactly once), {labels} by the list of labels.",
                )  # fmt: skip
                self.calibrate = gr.Checkbox(
                    self.default.calibrate, label="Calibration", elem_id="classify-calibrate",
                    info="Corrects the model's bias towards some labels, measured on texts without content.",
                )  # fmt: skip

    def _texts(self) -> None:
        self.box = gr.Textbox(
            label="Text", placeholder="Enter or paste a text …", lines=1, max_lines=12, elem_id="classify-box",
            info="Press Enter to classify, Shift+Enter for a new line.",
        )  # fmt: skip
        long(self.box)
        self.one_a_line = gr.Checkbox(self.default.one_a_line, label="One text per line", elem_id="classify-lines")
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
            [], value=None, label="Text column", visible=False, allow_custom_value=True,
            elem_id="classify-column",
        )  # fmt: skip
        self.true_column = gr.Dropdown(
            [NO_COLUMN], value="", label="Label column (optional)", visible=False,
            allow_custom_value=True, elem_id="classify-true-column",
            info=f"True labels, which are compared with the predictions; see “{evaluation_view.NAME}”.",
        )  # fmt: skip
        self.encoding = browser.encoding_list("classify-encoding", visible=False)
        with gr.Row(elem_classes="buttons"):
            self.file_go = gr.Button("Classify file", variant="primary", elem_id="classify-file-go")
            self.cancel = gr.Button("Cancel", interactive=False, elem_id="classify-cancel")
            self.train = gr.Button("Train classifier on this file", visible=False, elem_id="classify-train")
        self.file_result = gr.HTML(view.waiting(view.FILE_HINT), elem_id="classify-file-result", js_on_load=None)
        gr.Markdown(
            "The result has all columns of the file, plus the label, the confidence and the share of every label. It "
            "is kept for a day. Leaving the page stops the work and keeps the finished rows.", elem_classes="hint",
        )  # fmt: skip

    def form(self) -> list[Any]:
        """Return the controls in the order of the fields of `Form`."""
        asked = [self.labels, self.template_text, self.calibrate, self.one_a_line, self.by]
        return [*asked, self.upload, self.file, self.column, self.true_column, self.encoding]

    def file_controls(self) -> list[Any]:
        """Return the controls in the order of `_file_controls`."""
        return [self.upload, self.file, self.bring, self.column, self.true_column, self.encoding, self.train]


def _wire_form(page: _Page, events: ClassifyEvents) -> None:
    # Not `input`, which Gradio's text boxes fire for typed text only, not for pasted or deleted text.
    gr.on(
        [control.change for control in page.form()], None, page.form(), page.kept.form, js=REMEMBER,
        trigger_mode="multiple", **QUIET,
    )  # fmt: skip
    page.template_text.change(None, page.template_text, page.template, js=TEMPLATE_NAME, **QUIET)
    # `input` also fires when a list loses the focus, and would replace what was typed.
    page.preset.change(events.start_from, page.preset, [page.labels, page.template_text], preprocess=False, **AT_ONCE)
    page.template.change(events.choose_template, page.template, page.template_text, **AT_ONCE)
    page.by.input(events.arrange, page.by, [page.learned, page.quality], preprocess=False, **AT_ONCE)
    page.by.focus(events.open_list, page.listed, [page.by, page.listed], **AT_ONCE)
    opened = [
        page.labels, page.template_text, page.template, page.calibrate, page.one_a_line, page.by, page.listed,
        page.learned, page.quality, *page.file_controls(), page.file_result,
    ]  # fmt: skip
    # The classifier from the URL is selected by now; a refresh must not override a later selection.
    browser.page().load(events.open_page, list(page.kept), opened, **AT_ONCE).then(
        None, page.listed, page.listed, js=browser.forgetting("classifier"), **AT_ONCE
    )
    page.bring.upload(events.take, page.bring, [*page.file_controls(), page.file_result], **QUIET)


def _wire_texts(page: _Page, events: ClassifyEvents) -> None:
    shown = [page.result, page.routing, page.stop]
    # No preprocessing, so that invalid values get the studio's own error messages. "multiple", so that a second request
    # while texts are classified gets an error, which Gradio would drop silently.
    working: dict[str, Any] = {
        "fn": events.classify, "inputs": [page.box, *page.form()], "outputs": shown, "preprocess": False,
        **CLASSIFYING, "trigger_mode": "multiple", **QUIET,
    }  # fmt: skip
    idle: dict[str, Any] = {"fn": events.idle, "inputs": None, "outputs": page.stop, **AT_ONCE}
    gr.on([page.box.submit, page.go.click], **working).then(**idle)
    filled = [page.box, page.labels, page.template_text, page.one_a_line]
    page.examples.click(events.fill, page.examples, filled, **QUIET).success(**working).then(**idle)
    page.stop.click(events.stop, None, None, **AT_ONCE)


def _wire_file(page: _Page, events: ClassifyEvents) -> None:
    page.file_go.click(
        events.classify_file, page.form(), [page.file_result, page.kept.result, page.quality, page.cancel],
        preprocess=False, concurrency_limit=4, concurrency_id="classify-file", **QUIET,
    ).then(lambda: gr.update(interactive=False), None, page.cancel, **AT_ONCE)  # fmt: skip
    page.cancel.click(events.cancel, None, None, **AT_ONCE)
    page.column.input(events.choose_column, page.form(), page.true_column, preprocess=False, **AT_ONCE)
    page.encoding.input(events.choose_encoding, page.form(), page.file_controls(), preprocess=False, **AT_ONCE)
    page.train.click(events.train, page.form(), page.handed, preprocess=False, **QUIET)
