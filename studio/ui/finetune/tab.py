"""The Fine-tune tab: the form for a new run, and the runs panel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.backend.data.dataset import SAMPLES
from studio.backend.recipe_file import recipes
from studio.backend.system import zero_gpu
from studio.ui.common import browser, card
from studio.ui.common.handed_draft import handed_draft
from studio.ui.common.listeners import AT_ONCE, QUIET
from studio.ui.finetune import audit_view, data_preview, storage
from studio.ui.finetune.events import HINT, FinetuneEvents
from studio.ui.finetune.export_view import TITLES
from studio.ui.finetune.handlers import FIELDS, FORMATS
from studio.ui.finetune.recipe_form import RecipeForm
from studio.ui.finetune.run_draft import BUNDLED, HUB, OWN_FILE, Draft
from studio.ui.finetune.runs.runs_panel import runs_panel

if TYPE_CHECKING:
    from studio.backend.chat.engine import Engine
    from studio.backend.training.queue import Jobs

SOURCES = [
    *((name.replace("-", " ").capitalize(), name) for name in SAMPLES),
    ("Uploaded file", OWN_FILE),
    ("Hub data set", HUB),
]
BEGIN = (
    "**Check** loads the model, shows the trained parts, and measures memory and time in three steps. **Start run** "
    "puts the run in the queue; it continues if you close the page."
)
BEGIN_ON_ZERO_GPU = (
    "**Check** counts rows, steps and the GPU quota that the run asks for. **Start run** puts the run in the queue; it "
    "runs while this page stays open."
)
STORAGE = "jetmoe-studio-run-draft"
ELSEWHERE = (
    "This form is also open in another tab. “Start run” uses the values of this tab. Reloading the page restores the "
    "latest input of either tab."
)
SAVE = browser.saving("yaml", '"recipe.yaml"')


@dataclass(frozen=True)
class Tab:
    id: str
    title: str
    order: int

    def keep(self) -> gr.BrowserState:
        """Create the browser storage for the draft of a run."""
        return browser.kept("", STORAGE)

    def build(self, engine: Engine, jobs: Jobs, kept: gr.BrowserState) -> None:
        events = FinetuneEvents(engine, jobs)
        with gr.Tabs(elem_id="finetune-parts") as parts:
            with gr.Tab("New run", id="new"):
                new = _NewRun(events.handlers.models(), kept)
            with gr.Tab("Runs", id="runs"):
                runs = _Runs()
            with gr.Tab("Storage", id="storage") as stored:
                storage.build(jobs, stored)
        _wire_new_run(new, parts, runs, events)
        _wire_runs(runs, parts, events)


TAB = Tab("finetune", "Fine-tune", order=20)


class _NewRun:
    """The components, in page order."""

    def __init__(self, models: list[tuple[str, str]], stored: gr.BrowserState) -> None:
        self.stored = stored
        # Hidden text boxes, because gr.State is lost when the server restarts.
        self.ticket, self.upload, self.file_name, self.saved, self.applied = (
            gr.Textbox(visible="hidden") for _ in range(5)
        )
        browser.elsewhere(ELSEWHERE, STORAGE, "draft-elsewhere")
        with gr.Row(elem_classes="columns", equal_height=False):
            with gr.Column(scale=5, min_width=320):
                self._data()
            with gr.Column(scale=6, min_width=320):
                self.preview = gr.HTML(data_preview.waiting("Reading …"), elem_id="data-preview", js_on_load=None)
        self._recipe(models)
        with gr.Row(elem_classes="columns", equal_height=False):
            with gr.Column(scale=5, min_width=320):
                self._begin()
            with gr.Column(scale=6, min_width=320):
                self.audit = gr.HTML(card.waiting(audit_view.NAME, HINT), elem_id="audit", js_on_load=None)

    def _data(self) -> None:
        gr.Markdown("### 1 · Data")
        self.purpose = gr.Radio(
            [("Chat", "chat"), ("Classify", "classify"), ("Plain text", "text")], value="chat",
            label="Use the rows for", elem_id="purpose",
            info="Questions with answers, texts with labels, or texts that are trained as a whole.",
        )  # fmt: skip
        self.source = gr.Radio(SOURCES, value=Draft().source, label="Training data", elem_id="source")
        self.file = browser.upload_button("upload")
        self.hub = gr.Textbox(
            label="Data set of the Hub", placeholder="OWNER/NAME:train[:1000]", max_length=300, submit_btn="Use",
            elem_id="hub",
            info="A public data set of the Hugging Face Hub. OWNER/NAME/CONFIG@REVISION:SPLIT[:ROWS] selects a part.",
        )  # fmt: skip
        with gr.Row(elem_classes="settings"):
            self.format = gr.Dropdown(
                FORMATS, value="auto", label="Format", elem_id="format", min_width=180,
                info="“auto” detects it from the columns.",
            )  # fmt: skip
            self.encoding = browser.encoding_list("encoding")
        with gr.Row(elem_classes="settings"):
            self.columns = {
                name: gr.Dropdown(
                    [],
                    label=f"Column for {name}",
                    visible=False,
                    allow_custom_value=True,
                    min_width=180,
                    elem_id=f"column-{name}",
                )
                for name in FIELDS
            }

    def _recipe(self, models: list[tuple[str, str]]) -> None:
        gr.Markdown("### 2 · Recipe")
        self.bundled = gr.Dropdown(
            list(recipes()), value=BUNDLED, label="Bundled recipe", info="Sets all settings below.", elem_id="bundled"
        )
        self.form = RecipeForm(models)
        with gr.Row(elem_classes="buttons"):
            self.save = gr.Button("Save as YAML", size="sm", elem_id="save-recipe")
            self.load = gr.UploadButton("Load YAML", size="sm", file_types=[".yaml", ".yml"], elem_id="load-recipe")
        self.command = gr.Textbox(
            label="Command line equivalent", interactive=False, lines=1, max_lines=4,
            elem_id="command", buttons=["copy"],
        )  # fmt: skip

    def _begin(self) -> None:
        gr.Markdown("### 3 · Check and start")
        self.name = gr.Textbox(label="Run name", placeholder="Generated if empty", max_length=80, elem_id="run-name")
        with gr.Row(elem_classes="buttons"):
            self.check = gr.Button("Check", elem_id="check")
            self.start = gr.Button("Start run", variant="primary", elem_id="start")
        gr.Markdown(BEGIN_ON_ZERO_GPU if zero_gpu.ACTIVE else BEGIN, elem_classes="hint")

    def draft_inputs(self) -> list[Any]:
        """Return the inputs in the order of `_draft`."""
        return [
            self.upload, self.file_name, self.source, self.format, self.name, self.hub, self.encoding, self.applied,
            *self.columns.values(), *self.form.in_order(),
        ]  # fmt: skip


def _wire_new_run(new: _NewRun, parts: gr.Tabs, runs: _Runs, events: FinetuneEvents) -> None:
    inputs, columns = new.draft_inputs(), list(new.columns.values())
    controls = [component for component in inputs if component not in columns]
    reading: dict[str, Any] = {**QUIET, "concurrency_limit": 2, "concurrency_id": "data", "trigger_mode": "always_last"}
    memory, seen = [new.stored, new.command, new.purpose, new.bundled, new.audit], [new.preview, *columns]
    form: dict[str, Any] = new.form.controls
    everything = [*controls, *memory, *seen]
    typed = [
        component
        for component in inputs
        if component not in (new.upload, new.file_name, new.source, new.format, new.encoding, new.applied)
    ]
    # `blur` too, because Gradio fires no `input` for pasted text.
    texts = [component.blur for component in typed if isinstance(component, gr.Textbox)]
    gr.on(texts, events.leave, inputs, memory[:2], **AT_ONCE, trigger_mode="always_last")
    gr.on(
        [component.input for component in typed],
        events.remember,
        [new.stored, *inputs],
        memory,
        **AT_ONCE,
        trigger_mode="always_last",
    )
    new.source.input(events.look_elsewhere, inputs, [new.format, *memory, *seen], **reading)
    new.hub.submit(events.look_on_hub, inputs, [new.source, new.format, *memory, *seen], **reading)
    again = [new.format.input, new.encoding.input]
    gr.on(again, events.look_again, [new.stored, *inputs], [*memory, *seen], **reading)
    new.purpose.input(events.use_for, [new.purpose, *inputs], everything, **reading)
    gr.on([column.input for column in columns], events.look, inputs, seen, **reading)
    gr.on([form["model"].input, form["on_bad_rows"].input, *(form[name].blur for name in ("max_length", "eval_share"))],
          events.look, inputs, seen, **reading)  # fmt: skip
    new.file.upload(events.take, [new.file, *inputs], everything, **QUIET)
    new.load.upload(events.load, [new.load, *inputs], everything, **QUIET)
    new.bundled.input(events.load_bundled, [new.bundled, *inputs], everything, **QUIET)
    handed = handed_draft()
    handed.change(events.open_handed, handed, [*everything, browser.component("tabs"), parts], **QUIET)
    new.save.click(events.save, inputs, new.saved, **QUIET).success(None, new.saved, new.saved, js=SAVE, **QUIET)
    new.check.click(events.check, inputs, new.audit, **QUIET, concurrency_limit=1, concurrency_id="check")
    new.start.click(events.start, [new.ticket, *inputs], [new.ticket, parts, runs.panel], **QUIET, trigger_mode="once",
                    concurrency_limit=None)  # fmt: skip
    runs.panel.again(events.again, None, [*everything, parts], **QUIET)
    browser.page().load(events.open_page, new.stored, [*everything, new.ticket, parts], **AT_ONCE)


class _Runs:
    """The export of the open run, and the runs panel below it."""

    def __init__(self) -> None:
        self.opened = gr.Textbox(visible="hidden")
        with gr.Column(visible=False, elem_id="export-box") as self.box:
            with gr.Row(elem_id="export-bar"):
                self.title = gr.HTML(elem_id="export-title", js_on_load=None)
                kinds = [(title, kind) for kind, title in TITLES.items()]
                self.kind = gr.Radio(kinds, value="adapter", label="Export format", elem_id="export-kind")
                self.export = gr.Button("Export", variant="primary", elem_id="make-export")
            self.result = gr.HTML("", elem_id="export-result", js_on_load=None)
            with gr.Accordion("Push to the Hugging Face Hub", open=False, elem_id="push-box"):
                self._push()
        self.panel = runs_panel()

    def _push(self) -> None:
        self.place = gr.HTML("", elem_id="push-place", js_on_load=None)
        with gr.Column(visible=False, elem_id="push-form") as self.form:
            self.repo = gr.Textbox(
                label="Repository", info="Created if it does not exist.", max_length=200, elem_id="push-repo"
            )
            self.public = gr.Checkbox(
                False, label="Public", info="Visible to everyone; otherwise only to you.", elem_id="push-public"
            )
            self.push_preview = gr.HTML("", elem_id="push-preview", js_on_load=None)
            with gr.Row(elem_classes="buttons"):
                self.push = gr.Button("Push adapter", elem_id="push")
            self.pushed = gr.HTML("", elem_id="push-result", js_on_load=None)


def _wire_runs(runs: _Runs, parts: gr.Tabs, events: FinetuneEvents) -> None:
    push_form = [runs.place, runs.form, runs.repo, runs.public, runs.push_preview, runs.pushed]
    runs.panel.open(events.opened, None, [runs.opened, runs.box, runs.title, runs.result, *push_form], **AT_ONCE)
    # Queued, because Gradio shows no message from unqueued events.
    runs.panel.act(events.act, None, None, **QUIET, trigger_mode="multiple", concurrency_limit=None)
    made = runs.export.click(events.export, [runs.opened, runs.kind], runs.result, **QUIET, concurrency_limit=1,
                             concurrency_id="export")  # fmt: skip
    made.then(events.preview_push, [runs.opened, runs.repo], runs.push_preview, **AT_ONCE)
    # `change`, not `input`, which Gradio does not fire for pasted text.
    runs.repo.change(
        events.preview_push, [runs.opened, runs.repo], runs.push_preview, **AT_ONCE, trigger_mode="always_last"
    )
    runs.push.click(events.push, [runs.opened, runs.repo, runs.public], runs.pushed, **QUIET, concurrency_limit=4,
                    concurrency_id="push")  # fmt: skip
