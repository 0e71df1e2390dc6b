"""The model picker above the chat: what a model needs, a question before a download, and the progress.

picker = ModelPicker(engine)                # creates the list of models
picker.add_panel()                          # and, where they belong on the page, the question and the settings
picker.add_settings()
picker.wire(on_change)                      # `on_change(event)` updates what depends on the model
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.backend.hosting import demo
from studio.backend.models import catalog
from studio.backend.models.catalog import ModelEntry
from studio.backend.models.needs import Needs
from studio.errors import StudioError
from studio.ui.common import browser, card
from studio.ui.common.listeners import AT_ONCE, QUIET
from studio.ui.common.offered_models import checked_id, offered
from studio.ui.common.shown_errors import shows_errors
from studio.ui.server.identity import owner_of

if TYPE_CHECKING:
    from studio.backend.chat.engine import Engine

PRECISIONS = [("Automatic", "auto"), ("4-bit (NF4)", "nf4"), ("16-bit", "bf16"), ("32-bit", "fp32")]
NAMES = {value: name for name, value in PRECISIONS}


class ModelPicker:
    """The components, in page order."""

    def __init__(self, engine: Engine) -> None:
        self.events = PickerEvents(engine)
        self.model = gr.Dropdown(
            choices(engine), label="Model", elem_id="model", container=False, min_width=150, scale=1
        )
        self.asked = gr.State("")
        self.loaded = gr.Textbox(visible="hidden", elem_id="model-loaded")
        self.seen = gr.State(())

    def add_panel(self) -> None:
        """Add what asks before a download, or before the present model stops."""
        with gr.Column(visible=False, elem_id="model-panel") as self.panel:
            self.facts = gr.HTML(js_on_load=None, elem_id="model-facts")
            with gr.Row(elem_id="model-actions"):
                self.load = gr.Button("Load", variant="primary", size="sm", elem_id="model-load")
                self.cancel = gr.Button("Cancel", size="sm", elem_id="model-cancel")

    def add_settings(self) -> None:
        with gr.Row():
            self.precision = gr.Dropdown(
                PRECISIONS, value="auto", label="Precision", elem_id="precision",
                info="For expert and attention weights. Automatic: 4-bit on a GPU; on a CPU it depends on the model.",
            )  # fmt: skip
            self.other = gr.Textbox(
                label="Another model of the Hub", info="A JetMoE or OLMoE model: owner/name or owner/name@revision.",
                lines=1, max_lines=1, submit_btn="Look up", elem_id="hub-model",
            )  # fmt: skip

    def wire(self, on_change: Callable[[Any], None]) -> None:
        panel = [self.asked, self.panel, self.facts, self.load]
        choosing: dict[str, Any] = {"outputs": panel, "trigger_mode": "always_last", **QUIET}
        self.model.input(self.events.choose_model, [self.model, self.precision], **choosing)
        self.other.submit(self.events.look_up, [self.other, self.precision], **choosing)
        # `input` also fires when a list loses the focus, and would load the model again.
        self.precision.change(self.events.choose_precision, [self.asked, self.precision], **choosing)
        self.load.click(self.events.load, [self.asked, self.precision], panel, **QUIET)
        self.cancel.click(self.events.cancel, None, [*panel, self.model, self.other], **AT_ONCE)
        # The status line of every open page changes when a model is loaded, whoever asked for it.
        browser.component("status").change(
            self.events.follow, self.seen, [self.seen, self.model, self.loaded], **AT_ONCE
        )
        on_change(self.loaded.change)
        browser.page().load(self.events.open, None, [self.seen, self.model], **AT_ONCE)


class PickerEvents:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @shows_errors
    def choose_model(self, request: gr.Request, model_id: Any, precision: Any) -> tuple[Any, ...]:
        """As `choose`, except for the model that answers: Gradio also sends it when the list loses the focus."""
        if model_id == self.engine.status().model_id:
            return "", *_closed()
        return self.choose(request, model_id, precision)

    @shows_errors
    def choose(self, request: gr.Request, model_id: Any, precision: Any) -> tuple[Any, ...]:
        """Load a model that is on the disk and fits at once; otherwise show what it needs, and ask."""
        needs = self._needs(request, model_id, precision)
        if not needs.download_gib and needs.fits_beside:
            self.engine.start_loading(model_id, precision=precision)
            return "", *_closed()
        download = gr.update(value="Download and load" if needs.download_gib else "Load", visible=not needs.problem)
        present = self.engine.status()
        html = facts(needs, present.title if present.state == "ready" else None)
        return model_id, gr.update(visible=True), html, download

    @shows_errors
    def look_up(self, request: gr.Request, text: Any, precision: Any) -> tuple[Any, ...]:
        return self.choose(request, checked_id(self.engine, text), precision)

    @shows_errors
    def choose_precision(self, request: gr.Request, asked: str, precision: Any) -> tuple[Any, ...]:
        model_id = asked or self.engine.status().model_id
        if model_id is None:
            raise StudioError("No model is loaded. Select one first.")
        return self.choose(request, model_id, precision)

    @shows_errors
    def load(self, request: gr.Request, asked: Any, precision: Any) -> tuple[Any, ...]:
        """Start the download that the panel asks about; its conditions are checked again."""
        needs = self._needs(request, asked, precision)
        if needs.problem:
            raise StudioError(needs.problem)
        self.engine.start_loading(asked, precision=precision)
        return "", *_closed()

    @shows_errors
    def cancel(self) -> tuple[Any, ...]:
        return "", *_closed(), self.engine.status().model_id, ""

    @shows_errors
    def follow(self, seen: tuple[Any, ...]) -> tuple[Any, ...]:
        """Show the model that is loaded now, unless the page does so already or another one is on its way."""
        now = self._now()
        if now == seen:
            return gr.skip(), gr.skip(), gr.skip()
        is_busy = now[1] in ("preparing", "loading")
        return (now, gr.skip(), gr.skip()) if is_busy else (now, self._listed(), now[0] or "")

    @shows_errors
    def open(self) -> tuple[Any, ...]:
        return self._now(), self._listed()

    def _now(self) -> tuple[str | None, str]:
        """Return the model that answers, and the state of another one that is being loaded or has failed."""
        status = self.engine.status()
        return status.model_id, status.change.state if status.change else ""

    def _listed(self) -> Any:
        return gr.update(choices=choices(self.engine), value=self.engine.status().model_id)

    def _needs(self, request: gr.Request, model_id: Any, precision: Any) -> Needs:
        """Raise StudioError in a demo, whose visitors share the model, and for models that can't be loaded."""
        if limits := demo.limits():
            limits.refuse_another_model()
        checked = checked_id(self.engine, model_id)
        # Several people on one server must not read the private models of whoever runs it.
        is_shared = bool(owner_of(request))
        return self.engine.loader.needs(checked, precision, token=False if is_shared else None)


def choices(engine: Engine) -> list[tuple[str, str]]:
    """Return (title, id) of the offered models."""
    return [(f"{entry.title} · {_state(entry)}", model_id) for model_id, entry in offered(engine).items()]


def facts(needs: Needs, present: str | None) -> str:
    """Return what a model needs as an HTML card. `present` is the model that answers now, if any."""
    model, place = needs.model, needs.place
    figures = [
        (f"{needs.download_gib:.1f} GiB" if needs.download_gib >= 0.05 else "under 0.1 GiB", "to download"),
        (f"{needs.disk_gib:.0f} GiB", "free on the disk"),
    ] if needs.download_gib else []  # fmt: skip
    figures += [
        (f"{needs.memory_gib:.1f} GiB", "of memory needed"),
        (f"{needs.free_gib:.1f} GiB", "of memory free"),
        (NAMES[place.precision], f"precision, on the {place.device.upper()}"),
        (model.licence, "licence"),
    ]
    html = f"<h3>{escape(model.title)}</h3>{card.figures(figures)}"
    if needs.problem:
        return card.card("Model", html + card.problem(needs.problem))
    notes = [needs.notice, _until(needs, present)]
    if model.chat_template is False:
        notes.append("This base model has no chat template: in the chat, it continues your text.")
    return card.card("Model", html + "".join(card.note(note) for note in notes if note))


def _until(needs: Needs, present: str | None) -> str:
    if present is None:
        return ""
    if needs.fits_beside:
        return f"{present} answers until this model is ready."
    when = "until the download is complete" if needs.download_gib else "until you load this model"
    return f"{present} answers {when}. Then it is unloaded, because the memory does not hold both."


def _state(entry: ModelEntry) -> str:
    if catalog.ready(entry):
        return "on the disk"
    return f"{entry.download_gib:.1f} GiB to download" if entry.download_gib else "download not complete"


def _closed() -> tuple[Any, Any, Any]:
    return gr.update(visible=False), "", gr.skip()
