"""The fine-tune tab: a new run step by step, and the runs that there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.backend.data.dataset import SAMPLES
from studio.backend.recipe import recipes
from studio.errors import StudioError
from studio.ui.common import browser, card
from studio.ui.common.handed_draft import handed_draft
from studio.ui.common.shown_errors import shows_errors
from studio.ui.finetune import audit_view, data_preview
from studio.ui.finetune.export_view import TITLES
from studio.ui.finetune.handlers import FIELDS, FORMATS, Column, FinetuneHandlers
from studio.ui.finetune.pushing import account_of
from studio.ui.finetune.recipe_form import NAMES, RecipeForm
from studio.ui.finetune.run_draft import BUNDLED, CLASSIFIER, OWN_FILE, Draft, from_handed, from_json
from studio.ui.finetune.runs.runs_panel import opened as show_run
from studio.ui.finetune.runs.runs_panel import runs_panel
from studio.ui.server.identity import owner_of

if TYPE_CHECKING:
    from studio.backend.chat.engine import Engine
    from studio.backend.training.queue import Jobs

SOURCES = [*((name.replace("-", " ").capitalize(), name) for name in SAMPLES), ("My own file", OWN_FILE)]
HINT = "Check, and what will really train appears here, with the memory and the time that it takes."
STORAGE = "jetmoe-studio-run-draft"
ELSEWHERE = (
    '<p class="dp-note" role="status" hidden>This form is open in another tab too. Start takes what this tab '
    "shows; a reload brings back what was typed last, here or there.</p>"
)
WATCH_STORAGE = f"""
window.addEventListener("storage", (event) => {{
  if (event.key === {STORAGE!r}) element.querySelector("p").hidden = false;
}});"""
SAVE = browser.saving("yaml", '"recipe.yaml"')


@dataclass(frozen=True)
class Tab:
    id: str
    title: str
    order: int

    def keep(self) -> gr.BrowserState:
        """The run that is being put together."""
        return browser.kept("", STORAGE)

    def build(self, engine: Engine, jobs: Jobs, kept: gr.BrowserState) -> None:
        handlers = FinetuneHandlers(engine, jobs)
        with gr.Tabs(elem_id="finetune-parts") as parts:
            with gr.Tab("New run", id="new"):
                new = _NewRun(handlers, kept)
            with gr.Tab("Runs", id="runs"):
                runs = _Runs()
        _wire_new_run(new, parts, runs, handlers.of)
        _wire_runs(runs, parts, handlers.of)


TAB = Tab("finetune", "Fine-tune", order=20)


class _NewRun:
    """The components, in the order in which they stand on the page."""

    def __init__(self, handlers: FinetuneHandlers, stored: gr.BrowserState) -> None:
        self.stored = stored
        # In the page, not in gr.State, which a restart of the server forgets.
        self.ticket, self.upload, self.file_name, self.saved = (gr.Textbox(visible="hidden") for _ in range(4))
        gr.HTML(html_template=ELSEWHERE, js_on_load=WATCH_STORAGE, elem_id="draft-elsewhere")
        with gr.Row(elem_classes="columns", equal_height=False):
            with gr.Column(scale=5, min_width=320):
                self._data()
            with gr.Column(scale=6, min_width=320):
                self.preview = gr.HTML(data_preview.waiting("Reading …"), elem_id="data-preview", js_on_load=None)
        self._recipe(handlers)
        with gr.Row(elem_classes="columns", equal_height=False):
            with gr.Column(scale=5, min_width=320):
                self._begin()
            with gr.Column(scale=6, min_width=320):
                self.audit = gr.HTML(card.waiting(audit_view.NAME, HINT), elem_id="audit", js_on_load=None)

    def _data(self) -> None:
        gr.Markdown("### 1 · Data")
        self.source = gr.Radio(SOURCES, value=Draft().source, label="Rows to learn from", elem_id="source")
        self.file = browser.upload_button("upload")
        self.format = gr.Dropdown(
            FORMATS, value="auto", label="Format", elem_id="format",
            info="How a row is read. auto tells it from the columns.",
        )  # fmt: skip
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

    def _recipe(self, handlers: FinetuneHandlers) -> None:
        gr.Markdown("### 2 · Recipe")
        self.bundled = gr.Dropdown(
            list(recipes()), value=BUNDLED, label="Start from", info="Sets everything below.", elem_id="bundled"
        )
        self.form = RecipeForm(handlers.models())
        with gr.Row(elem_classes="buttons"):
            self.save = gr.Button("Save as YAML", size="sm", elem_id="save-recipe")
            self.load = gr.UploadButton("Load YAML", size="sm", file_types=[".yaml", ".yml"], elem_id="load-recipe")
        self.command = gr.Textbox(
            label="The same in a terminal, with the saved recipe", interactive=False, lines=1, max_lines=4,
            elem_id="command", buttons=["copy"],
        )  # fmt: skip

    def _begin(self) -> None:
        gr.Markdown("### 3 · Check and start")
        self.name = gr.Textbox(
            label="Name of the run", placeholder="found for you if empty", max_length=80, elem_id="run-name"
        )
        with gr.Row(elem_classes="buttons"):
            self.check = gr.Button("Check", elem_id="check")
            self.start = gr.Button("Start", variant="primary", elem_id="start")
        gr.Markdown(
            "**Check** loads the model, says what will really train, and tries three steps for memory and time. "
            "**Start** puts the run in the queue; it goes on when you leave.", elem_classes="hint"
        )  # fmt: skip

    def draft_inputs(self) -> list[Any]:
        """In the order of `_draft`."""
        return [
            self.upload, self.file_name, self.source, self.format, self.name,
            *self.columns.values(), *self.form.in_order(),
        ]  # fmt: skip


def _draft(upload: str, file: str, source: str, format: str, name: str, *values: Any) -> Draft:
    columns = dict(zip(FIELDS, values, strict=False))
    settings = dict(zip(NAMES, values[len(FIELDS) :], strict=True))
    chosen = {field: column for field, column in columns.items() if column}
    return Draft(source or "", upload or "", file or "", format or "auto", chosen, settings, name or "")


def _controls(draft: Draft) -> list[Any]:
    """New values of the controls that hold a draft, but for the columns, which come with the data."""
    return [draft.upload, draft.file, draft.source, draft.format, draft.name, *(draft.settings[name] for name in NAMES)]


def _problem_card(text: str) -> str:
    return card.card(data_preview.NAME, card.problem(text))


def _column(column: Column, field: str, sent: dict[str, str] | None) -> Any:
    """Leaves a choice alone that is as it was sent: meanwhile the person may have made another."""
    needed = "needed" if column.needed else "optional"
    choices = column.choices if column.needed else [("none", ""), *column.choices]
    is_same = sent is not None and sent.get(field, "") == (column.value or "")
    value = {} if is_same else {"value": column.value}
    return gr.update(visible=column.shown, choices=choices, label=f"Column for {field} ({needed})", **value)


def _wire_new_run(
    new: _NewRun, parts: gr.Tabs, runs: _Runs, handlers_of: Callable[[gr.Request], FinetuneHandlers]
) -> None:
    inputs, columns = new.draft_inputs(), list(new.columns.values())
    controls = [component for component in inputs if component not in columns]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    at_once: dict[str, Any] = {**quiet, "queue": False}
    reading: dict[str, Any] = {**quiet, "concurrency_limit": 2, "concurrency_id": "data", "trigger_mode": "always_last"}

    def looked(request: gr.Request, draft: Draft, sent: dict[str, str] | None = None) -> list[Any]:
        """The preview and the columns; what can't be read is said where the data would be.

        Args:
            sent: columns as they were chosen on the page, where by now others may be chosen.
        """
        try:
            seen = handlers_of(request).look(draft)
        except StudioError as error:
            return [_problem_card(str(error)), *(gr.skip() for _ in FIELDS)]
        return [seen.html, *(_column(seen.columns[field], field, sent) for field in FIELDS)]

    def remembered(request: gr.Request, draft: Draft) -> list[Any]:
        """For the browser, the command, and instead of a check, which was of other settings."""
        return [draft.to_json(), handlers_of(request).command(draft), card.waiting(audit_view.NAME, HINT)]

    @shows_errors
    def remember(request: gr.Request, *values: Any) -> list[Any]:
        return remembered(request, _draft(*values))

    @shows_errors
    def leave(request: gr.Request, *values: Any) -> list[Any]:
        return remembered(request, _draft(*values))[:2]

    @shows_errors
    def open_page(request: gr.Request, stored: str) -> list[Any]:
        draft, lost = handlers_of(request).fresh(), ""
        try:
            draft = from_json(stored) if stored else draft
        except StudioError as error:
            lost = _problem_card(f"{error} A new one is begun.")
        model = gr.update(choices=handlers_of(request).models(), value=draft.settings["model"])
        values = _controls(replace(draft, settings=draft.settings | {"model": model}))
        # A run that the address names is opened by the panel itself.
        part = gr.Tabs(selected="runs") if request.query_params.get("run") else gr.skip()
        seen, *columns = looked(request, draft)
        return [*values, *remembered(request, draft), lost + seen, *columns, handlers_of(request).ticket(), part]

    @shows_errors
    def look(request: gr.Request, *values: Any) -> list[Any]:
        draft = _draft(*values)
        return looked(request, draft, draft.columns)

    @shows_errors
    def look_anew(request: gr.Request, *values: Any) -> list[Any]:
        draft = replace(_draft(*values), columns={})
        return [*remembered(request, draft), *looked(request, draft)]

    @shows_errors
    def look_elsewhere(request: gr.Request, *values: Any) -> list[Any]:
        draft = replace(_draft(*values), columns={}, format="auto")
        return ["auto", *remembered(request, draft), *looked(request, draft)]

    @shows_errors
    def take(request: gr.Request, file: str, *values: Any) -> list[Any]:
        draft = handlers_of(request).upload(_draft(*values), Path(file))
        return [*_controls(draft), *remembered(request, draft), *looked(request, draft)]

    @shows_errors
    def load(request: gr.Request, file: str, *values: Any) -> list[Any]:
        draft, notice = handlers_of(request).load(_draft(*values), file)
        if notice:
            gr.Warning(escape(notice))
        return [*_controls(draft), *remembered(request, draft), *looked(request, draft)]

    @shows_errors
    def open_handed(request: gr.Request, handed: Any) -> list[Any]:
        """What another tab hands over, for the model that is loaded."""
        draft = from_handed(handed)
        draft = replace(draft, settings=draft.settings | {"model": handlers_of(request).fresh().settings["model"]})
        shown = [gr.Tabs(selected="finetune"), gr.Tabs(selected="new"), CLASSIFIER]
        return [*_controls(draft), *remembered(request, draft), *looked(request, draft), *shown]

    @shows_errors
    def save(request: gr.Request, *values: Any) -> str:
        return handlers_of(request).saved(_draft(*values))

    @shows_errors
    def check(request: gr.Request, *values: Any) -> Iterator[str]:
        yield from handlers_of(request).check(_draft(*values))

    @shows_errors
    def start(request: gr.Request, ticket: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        handlers = handlers_of(request)
        run = handlers.start(_draft(*values), ticket)
        gr.Info(escape(handlers.queued(run)), title="Started")
        yield handlers.ticket(), gr.Tabs(selected="runs"), show_run(run.id)
        for _ in handlers.accompany(run.id):
            yield gr.skip(), gr.skip(), gr.skip()

    memory, seen = [new.stored, new.command, new.audit], [new.preview, *columns]
    form: dict[str, Any] = new.form.controls
    everything = [*controls, *memory, *seen]
    typed = [component for component in inputs if component not in (new.upload, new.file_name, new.source, new.format)]
    # A text that is pasted is no input until it is left.
    texts = [component.blur for component in typed if isinstance(component, gr.Textbox)]
    gr.on(texts, leave, inputs, memory[:2], **at_once, trigger_mode="always_last")
    gr.on([component.input for component in typed], remember, inputs, memory, **at_once, trigger_mode="always_last")
    new.source.input(look_elsewhere, inputs, [new.format, *memory, *seen], **reading)
    new.format.input(look_anew, inputs, [*memory, *seen], **reading)
    gr.on([column.input for column in columns], look, inputs, seen, **reading)
    gr.on([form["model"].input, form["on_bad_rows"].input, *(form[name].blur for name in ("max_length", "eval_share"))],
          look, inputs, seen, **reading)  # fmt: skip
    new.file.upload(take, [new.file, *inputs], everything, **quiet)
    new.load.upload(load, [new.load, *inputs], everything, **quiet)
    new.bundled.input(load, [new.bundled, *inputs], everything, **quiet)
    handed = handed_draft()
    handed.change(open_handed, handed, [*everything, browser.component("tabs"), parts, new.bundled], **quiet)
    new.save.click(save, inputs, new.saved, **quiet).success(None, new.saved, new.saved, js=SAVE, **quiet)
    new.check.click(check, inputs, new.audit, **quiet, concurrency_limit=1, concurrency_id="check")
    new.start.click(start, [new.ticket, *inputs], [new.ticket, parts, runs.panel], **quiet, trigger_mode="once",
                    concurrency_limit=None)  # fmt: skip
    browser.page().load(open_page, new.stored, [*everything, new.ticket, parts], **at_once)


class _Runs:
    def __init__(self) -> None:
        self.opened = gr.Textbox(visible="hidden")
        self.panel = runs_panel()
        with gr.Column(visible=False, elem_id="export-box") as self.box:
            self.title = gr.HTML(elem_id="export-title", js_on_load=None)
            kinds = [(title, kind) for kind, title in TITLES.items()]
            self.kind = gr.Radio(kinds, value="adapter", label="What", elem_id="export-kind")
            with gr.Row(elem_classes="buttons"):
                self.export = gr.Button("Export", elem_id="make-export")
            self.result = gr.HTML("", elem_id="export-result", js_on_load=None)
            with gr.Accordion("Push to the Hugging Face Hub", open=False, elem_id="push-box"):
                self.place = gr.HTML("", elem_id="push-place", js_on_load=None)
                with gr.Column(visible=False, elem_id="push-form") as self.form:
                    self.repo = gr.Textbox(
                        label="Repository", info="It is made where it is not there yet.", max_length=200,
                        elem_id="push-repo",
                    )  # fmt: skip
                    self.public = gr.Checkbox(
                        False, label="Public", info="Everybody can see it; else you alone.", elem_id="push-public"
                    )
                    self.arriving = gr.HTML("", elem_id="push-arriving", js_on_load=None)
                    with gr.Row(elem_classes="buttons"):
                        self.push = gr.Button("Push the adapter", elem_id="push")
                    self.pushed = gr.HTML("", elem_id="push-result", js_on_load=None)


def _wire_runs(runs: _Runs, parts: gr.Tabs, handlers_of: Callable[[gr.Request], FinetuneHandlers]) -> None:
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    at_once: dict[str, Any] = {**quiet, "queue": False}

    @shows_errors
    def opened(request: gr.Request, event: gr.EventData) -> tuple[Any, ...]:
        handlers = handlers_of(request)
        run = handlers.exportable(str(event._data.get("id", "")))
        title = f"<h3>Export of “{escape(run.name)}”</h3>" if run else ""
        form = handlers.pushable(run)
        arriving = handlers.arriving(run.id, form.repo) if run else ""
        box = [run.id if run else "", gr.update(visible=run is not None), title, ""]
        return *box, form.html, gr.update(visible=form.offered), form.repo, False, arriving, ""

    @shows_errors
    def act(request: gr.Request, event: gr.EventData) -> Iterator[None]:
        handlers, action, run_id = handlers_of(request), str(event._data.get("action")), str(event._data.get("id"))
        gr.Info(escape(handlers.act(action, run_id)))
        yield
        if action == "resume":
            for _ in handlers.accompany(run_id):
                yield

    @shows_errors
    def export(request: gr.Request, run_id: str, kind: str) -> Iterator[str]:
        yield from handlers_of(request).export(run_id, kind)

    @shows_errors
    def look_at_push(request: gr.Request, run_id: str, repo: str) -> str:
        return handlers_of(request).arriving(run_id, repo or "") if run_id else ""

    @shows_errors
    def push(
        request: gr.Request, profile: gr.OAuthProfile | None, token: gr.OAuthToken | None,
        run_id: str, repo: str, public: bool,
    ) -> Iterator[str]:  # fmt: skip
        account = account_of(owner_of(request), profile, token)
        yield from handlers_of(request).push(run_id, repo or "", public is True, account)

    push_form = [runs.place, runs.form, runs.repo, runs.public, runs.arriving, runs.pushed]
    runs.panel.open(opened, None, [runs.opened, runs.box, runs.title, runs.result, *push_form], **at_once)
    # Through the queue, as what is not queued shows no message.
    runs.panel.act(act, None, None, **quiet, trigger_mode="multiple", concurrency_limit=None)
    made = runs.export.click(export, [runs.opened, runs.kind], runs.result, **quiet, concurrency_limit=1,
                             concurrency_id="export")  # fmt: skip
    made.then(look_at_push, [runs.opened, runs.repo], runs.arriving, **at_once)
    # Not when it is typed into, which a text that is pasted isn't.
    runs.repo.change(look_at_push, [runs.opened, runs.repo], runs.arriving, **at_once, trigger_mode="always_last")
    runs.push.click(push, [runs.opened, runs.repo, runs.public], runs.pushed, **quiet, concurrency_limit=4,
                    concurrency_id="push")  # fmt: skip
