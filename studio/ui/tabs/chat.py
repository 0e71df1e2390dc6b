"""The chat tab: the conversation on the left, the routing of its answers on the right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.backend import catalog
from studio.errors import StudioError
from studio.ui.chat_handlers import ChatHandlers
from studio.ui.markdown import as_text
from studio.ui.routing_panel import routing_panel
from studio.ui.sampling_form import sampling_controls
from studio.ui.shown_errors import shows_errors

if TYPE_CHECKING:
    from studio.backend.engine import Engine

# Of different kinds, because the starter's routers tell kinds of text apart; and within what a small model can do.
EXAMPLES = (
    "What is the capital of France, and what is it known for?",
    "Write a Python function that checks whether a number is prime.",
    "Explique en deux phrases ce qu'est la photosynthèse.",
    "Cuenta en tres frases por qué el mar es salado.",
    "Tell a very short story about a lighthouse keeper and a whale.",
    "Why is the sky blue? Answer for a child of ten.",
)
PLACEHOLDER = "### What would you like to ask?\nThe answer streams here; beside it, the experts that write it light up."
PRECISIONS = [("Automatic", "auto"), ("4-bit (NF4)", "nf4"), ("16-bit", "bf16"), ("32-bit", "fp32")]
STORAGE_SECRET = "kept in the browser, not secret"  # noqa: S105  fixed, so that a conversation outlives the server
DOWNLOAD = """(text) => {
  if (!text) return "";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = `conversation-${new Date().toISOString().slice(0, 16).replace(/[:T]/g, "-")}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  return "";
}"""


@dataclass(frozen=True)
class Tab:
    title: str
    order: int

    def build(self, engine: Engine) -> None:
        page = _Page()
        _wire(page, engine)


TAB = Tab("Chat", order=10)


class _Page:
    """The components, in the order in which they stand on the page."""

    def __init__(self) -> None:
        self.stored = gr.BrowserState("", storage_key="jetmoe-studio-conversation", secret=STORAGE_SECRET)
        self.exported = gr.Textbox(visible="hidden", elem_id="exported")
        with gr.Row(elem_id="columns", equal_height=False):
            with gr.Column(scale=6, min_width=320, elem_id="talk"):
                self._talk()
            with gr.Column(scale=5, min_width=320, elem_id="routing-column"):
                self.routing = routing_panel()

    def _talk(self) -> None:
        self.chat = gr.Chatbot(
            elem_id="chat", label="Conversation", show_label=False, height="56vh", min_height=340, layout="bubble",
            placeholder=PLACEHOLDER, examples=[{"text": text} for text in EXAMPLES],
            buttons=["copy", "copy_all"], editable="user", allow_tags=False, latex_delimiters=[], sanitize_html=True,
            feedback_options=None, allow_file_downloads=False, group_consecutive_messages=False,
        )  # fmt: skip
        self.stats = gr.HTML(elem_id="stats", js_on_load=None)
        self.box = gr.Textbox(
            elem_id="box", label="Your message", show_label=False, placeholder="Ask something …", lines=1, max_lines=8,
            submit_btn="Send", stop_btn=False, autofocus=True,
        )  # fmt: skip
        with gr.Row(elem_id="actions"):
            self.fresh = gr.Button("New chat", size="sm", elem_id="new-chat")
            self.export = gr.Button("Export", size="sm", elem_id="export")
            self.load = gr.UploadButton("Import", size="sm", elem_id="import", file_types=[".json"], type="binary")
        with gr.Accordion("Advanced", open=False, elem_id="advanced"):
            self._settings()

    def _settings(self) -> None:
        choices = [(f"{entry.title} · {_needs(entry.needs_gib)}", entry.id) for entry in catalog.models()]
        with gr.Row():
            self.model = gr.Dropdown(choices, label="Model", info="Loads in the background.", elem_id="model")
            self.precision = gr.Dropdown(
                PRECISIONS, value="auto", label="Precision", elem_id="precision",
                info="Of expert and attention weights; automatic is 4-bit on a GPU, and on a CPU what suits the model.",
            )  # fmt: skip
        self.system = gr.Textbox(
            label="System prompt", info="Put before every conversation; empty sends none.", lines=2, elem_id="system"
        )
        with gr.Row(elem_id="sampling"):
            self.sampling = sampling_controls()

    def outputs(self) -> list[Any]:
        """In the order of `Shown`."""
        return [self.chat, self.stored, self.box, self.routing, self.stats, self.system]


def _wire(page: _Page, engine: Engine) -> None:
    handlers = ChatHandlers(engine)
    shown = page.outputs()
    asking = [page.stored, page.system, *page.sampling]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    writing: dict[str, Any] = {**quiet, "concurrency_limit": 8, "concurrency_id": "chat"}
    at_once: dict[str, Any] = {**quiet, "queue": False}

    @shows_errors
    def send(request: gr.Request, text: str, stored: str, system: str, *settings: Any) -> Iterator[tuple[Any, ...]]:
        for values in handlers.send(text, stored, system, _session(request), list(settings)):
            yield values.values()

    @shows_errors
    def send_example(
        request: gr.Request, example: gr.SelectData, stored: str, system: str, *settings: Any
    ) -> Iterator[tuple[Any, ...]]:
        text = example.value.get("text") if isinstance(example.value, dict) else ""
        for values in handlers.send(text or "", stored, system, _session(request), list(settings)):
            yield values.values()

    @shows_errors
    def retry(request: gr.Request, stored: str, system: str, *settings: Any) -> Iterator[tuple[Any, ...]]:
        for values in handlers.retry(stored, system, _session(request), list(settings)):
            yield values.values()

    @shows_errors
    def edit(
        request: gr.Request, edited: gr.EditData, stored: str, system: str, *settings: Any
    ) -> Iterator[tuple[Any, ...]]:
        text = as_text(edited.value) if isinstance(edited.value, str) else ""
        for values in handlers.edit(_index(edited.index), text, stored, system, _session(request), list(settings)):
            yield values.values()

    @shows_errors
    def undo(request: gr.Request, stored: str) -> tuple[Any, ...]:
        return handlers.undo(stored, _session(request)).values()

    @shows_errors
    def clear(request: gr.Request) -> tuple[Any, ...]:
        return handlers.clear(_session(request)).values()

    @shows_errors
    def stop(request: gr.Request) -> None:
        handlers.stop(_session(request))

    @shows_errors
    def open_page(stored: str) -> tuple[Any, ...]:
        return (*handlers.open_page(stored).values(), engine.status().model_id)

    @shows_errors
    def export(request: gr.Request, stored: str) -> str:
        return handlers.export_file(stored, _session(request))

    @shows_errors
    def load(request: gr.Request, data: bytes) -> tuple[Any, ...]:
        return handlers.import_file(data, _session(request)).values()

    @shows_errors
    def select(stored: str, chosen: gr.SelectData) -> tuple[Any, ...]:
        return handlers.show_message(stored, _index(chosen.index)).values()

    @shows_errors
    def pick(stored: str, chosen: gr.EventData) -> tuple[Any, ...]:
        return handlers.show_routing(stored, chosen._data.get("answer")).values()

    @shows_errors
    def choose_model(model_id: str, precision: Any) -> None:
        # The engine also takes folders, for the command line; a page must not choose any folder of the server.
        if model_id not in [entry.id for entry in catalog.models()]:
            raise StudioError("This model is not in the list. Reload the page and pick again.")
        engine.start_loading(model_id, precision=precision)

    page.box.submit(send, [page.box, *asking], shown, **writing)
    page.chat.example_select(send_example, asking, shown, **writing)
    page.chat.retry(retry, asking, shown, **writing)
    page.chat.edit(edit, asking, shown, **writing)
    page.box.stop(stop, None, None, **at_once)
    page.chat.undo(undo, page.stored, shown, **at_once)
    gr.on([page.chat.clear, page.fresh.click], clear, None, shown, **at_once)
    page.chat.select(select, page.stored, shown, **quiet)
    page.routing.pick(pick, page.stored, shown, **quiet)
    page.export.click(export, page.stored, page.exported, **quiet).success(
        None, page.exported, page.exported, js=DOWNLOAD, **quiet
    )
    page.load.upload(load, page.load, shown, **quiet)
    gr.on([page.model.input, page.precision.input], choose_model, [page.model, page.precision], None, **at_once)
    page_blocks = gr.context.Context.root_block
    assert page_blocks is not None, "a tab is built inside of gr.Blocks"
    page_blocks.load(open_page, page.stored, [*shown, page.model], **at_once)


def _session(request: gr.Request) -> str:
    return request.session_hash or ""


def _index(index: Any) -> int:
    first = index[0] if isinstance(index, list | tuple) and index else index
    if type(first) is not int:
        raise StudioError("This message can't be found. Reload the page.")
    return first


def _needs(needs_gib: dict[str, float]) -> str:
    return ", ".join(f"{gib:g} GiB in {weights}" for weights, gib in needs_gib.items())
