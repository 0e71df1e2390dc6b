"""The Chat tab: the conversation on the left, the routing of its answers on the right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.backend.system import zero_gpu
from studio.ui.chat.events import ChatEvents
from studio.ui.chat.examples import EXAMPLES
from studio.ui.chat.messages import WELCOME, heading, quota_note
from studio.ui.chat.model_picker import ModelPicker
from studio.ui.chat.sampling_form import sampling_controls
from studio.ui.common import browser
from studio.ui.common.listeners import ANSWERING, AT_ONCE, QUIET
from studio.ui.common.picked_adapter import NONE, Picked
from studio.ui.routing.routing_panel import routing_panel
from studio.ui.server.fair_queue import long
from studio.ui.server.scripts import mounting

if TYPE_CHECKING:
    from studio.backend.chat.engine import Engine
    from studio.backend.training.queue import Jobs

LATEX = [{"left": left, "right": right, "display": display} for left, right, display in (
    ("$$", "$$", True), ("\\[", "\\]", True), ("\\(", "\\)", False),
)]  # fmt: skip
CHAT: dict[str, Any] = {
    "show_label": False, "height": "56vh", "min_height": 340, "layout": "bubble", "buttons": ["copy", "copy_all"],
    "allow_tags": False, "latex_delimiters": LATEX, "sanitize_html": True, "feedback_options": None,
    "allow_file_downloads": False, "group_consecutive_messages": False,
}  # fmt: skip
DOWNLOAD = browser.saving("json", '`conversation-${new Date().toISOString().slice(0, 16).replace(/[:T]/g, "-")}.json`')
# Runs in the browser, so that a message sent right away uses the new selection.
PICK = "(adapter, beside) => ({ adapter: adapter ?? '', beside: Boolean(adapter) && beside })"
# The adapter from the URL is selected by now; a refresh must not override a later selection.
FORGET_ADDRESS = browser.forgetting("adapter")
# Keyboard users lose the focus when the stop button disappears. On a phone, focusing the box would open the keyboard.
TO_BOX = (
    "() => { if (document.activeElement.matches(':focus-visible')) document.querySelector('#box textarea').focus(); }"
)
KEEP_SAMPLING = "(model, ...values) => ({ model, values })"
NOTHING = "() => null"
CONFIRM_DELETE = """(picked) =>
  [picked, confirm("Delete the selected adapter? It can't be restored.") ? "yes" : ""]"""
UPLOAD_HELP = "Upload PEFT's adapter_config.json and adapter_model.safetensors, or a .zip of both."


@dataclass(frozen=True)
class Tab:
    id: str
    title: str
    order: int

    def keep(self) -> list[gr.BrowserState]:
        """Create the browser storage for the adapter, the sampling, and the conversation of earlier versions."""
        return [
            long(browser.kept("", "jetmoe-studio-conversation")),
            browser.kept(Picked().kept(), "jetmoe-studio-adapter"),
            browser.kept(None, "jetmoe-studio-sampling"),
        ]

    def build(self, engine: Engine, jobs: Jobs, kept: list[gr.BrowserState]) -> None:
        _wire(_Page(engine, *kept), ChatEvents(engine))


TAB = Tab("chat", "Chat", order=10)


class _Page:
    """The components, in page order."""

    def __init__(self, engine: Engine, *kept: gr.BrowserState) -> None:
        self.engine = engine
        self.earlier, self.picked, self.chosen_sampling = kept
        self.listed = gr.State([(NONE.title, NONE.id)])
        self.exported = gr.Textbox(visible="hidden", elem_id="exported")
        self.notice = gr.Textbox(visible="hidden", elem_id="notice")
        self.confirmed = gr.Textbox(visible="hidden")
        with gr.Row(elem_id="columns", equal_height=False):
            with gr.Column(scale=6, min_width=320, elem_id="talk"):
                self._talk()
            with gr.Column(scale=5, min_width=320, elem_id="routing-column"):
                gr.HTML('<a href="#talk">↑ Chat</a>', elem_classes="phone-link", js_on_load=None)
                self.routing = routing_panel()

    def _talk(self) -> None:
        self._head()
        with gr.Row(elem_id="sides", equal_height=False):
            with gr.Column(min_width=240, elem_id="own-side"):
                self.title = gr.HTML(visible=False, elem_id="own-title", js_on_load=None)
                self.chat = gr.Chatbot(
                    elem_id="chat", label="Conversation", placeholder=WELCOME, editable="all",
                    examples=[{"text": text} for text in EXAMPLES], **CHAT,
                )  # fmt: skip
                self.stats = gr.HTML(elem_id="stats", js_on_load=None)
            with gr.Column(min_width=240, elem_id="base-side", visible=False) as self.base_side:
                gr.HTML(heading("Base model"), elem_id="base-title", js_on_load=None)
                self.base_chat = gr.Chatbot(elem_id="base-chat", label="Conversation with the base model", **CHAT)
                self.base_stats = gr.HTML(elem_id="base-stats", js_on_load=None)
        self.box = gr.Textbox(
            elem_id="box", label="Your message", show_label=False, placeholder="Ask something …", lines=1, max_lines=8,
            submit_btn="Send", stop_btn=False, autofocus=True,
        )  # fmt: skip
        long(self.box)
        self.quota = gr.HTML(visible=zero_gpu.ACTIVE, elem_id="quota", js_on_load=None)
        gr.HTML('<a href="#routing-column">↓ Routing</a>', elem_classes="phone-link", js_on_load=None)
        with gr.Row(elem_id="actions"):
            self.fresh = gr.Button("New chat", size="sm", elem_id="new-chat")
            self.export = gr.Button("Export", size="sm", elem_id="export")
            self.load = gr.UploadButton("Import", size="sm", elem_id="import", file_types=[".json"], type="binary")
            gr.HTML(elem_id="shortcuts", js_on_load=mounting("chat/shortcuts.js"))
        with gr.Accordion("Adapters", open=False, elem_id="adapters"):
            self._upload()
        with gr.Accordion("Advanced", open=False, elem_id="advanced"):
            self._settings()

    def _head(self) -> None:
        """Add the list of conversations, and who answers."""
        bar = mounting("chat/conversations/conversations.js", events=["show"])
        with gr.Row(elem_id="chat-head"):
            self.stored = gr.HTML(
                "", html_template="<div></div>", js_on_load=bar, apply_default_css=False, elem_id="conversations"
            )
            long(self.stored)
            self.picker = ModelPicker(self.engine)
            self.adapter = gr.Dropdown(
                [(NONE.title, NONE.id)], value=NONE.id, label="Adapter", elem_id="adapter", filterable=False,
                container=False, min_width=150, scale=1,
            )  # fmt: skip
            self.beside = gr.Checkbox(
                label="Side by side", interactive=False, elem_id="beside", container=False, min_width=110, scale=0
            )
        self.picker.add_panel()

    def _upload(self) -> None:
        with gr.Row(elem_id="upload-row"):
            self.name = gr.Textbox(
                label="Adapter name", info=UPLOAD_HELP, lines=1, elem_id="adapter-name", min_width=200
            )
            self.upload = gr.UploadButton(
                "Upload adapter", file_count="multiple",
                type="filepath", size="sm", elem_id="adapter-upload", scale=0, min_width=150,
            )  # fmt: skip
            self.delete = gr.Button("Delete adapter", size="sm", elem_id="adapter-delete", scale=0, min_width=150)

    def _settings(self) -> None:
        self.picker.add_settings()
        self.system = gr.Textbox(
            label="System prompt", info="Sent at the start of every conversation.", lines=2, elem_id="system"
        )
        self.raw = gr.Checkbox(
            label="Raw completion", elem_id="raw",
            info="The model continues your text as it stands: no chat template, no system prompt. For base models.",
        )  # fmt: skip
        with gr.Accordion("Prompt as the model gets it", open=False, elem_id="prompt") as self.prompt:
            self.prompt_text = gr.HTML(elem_id="prompt-text", js_on_load=None)
        with gr.Row(elem_id="sampling-head"):
            self.recommendation = gr.HTML(elem_id="sampling-source", js_on_load=None)
            self.reset = gr.Button("Use these values", size="sm", elem_id="sampling-reset", scale=0, min_width=140)
        with gr.Row(elem_id="sampling"):
            self.sampling = sampling_controls()
        length: Any = self.sampling["max_new_tokens"]
        if zero_gpu.ACTIVE:
            self.quota.value = quota_note(length.value)
            # What is typed is within the bounds only once the field is left.
            within = f"(value) => Math.min(Math.max(value ?? 0, {length.minimum}), {length.maximum})"
            length.change(quota_note, length, self.quota, js=within, **AT_ONCE)

    def outputs(self) -> list[Any]:
        """Return the outputs in the order of `Shown`."""
        conversation = [self.chat, self.stored, self.box, self.routing, self.stats, self.system]
        return [*conversation, self.base_chat, self.base_stats, self.title, self.base_side, self.notice, self.raw]


def _wire(page: _Page, events: ChatEvents) -> None:
    shown = page.outputs()
    asking = [page.stored, page.system, page.picked, *page.sampling.values()]
    picking = [page.adapter, page.beside, page.picked, page.listed]
    writing: dict[str, Any] = {**QUIET, **ANSWERING}
    page.box.submit(events.send, [page.box, *asking], shown, **writing)
    page.chat.example_select(events.send_example, asking, shown, **writing)
    page.chat.retry(events.retry, asking, shown, **writing)
    page.chat.option_select(events.choose_option, asking, shown, **writing)
    page.chat.edit(events.edit, asking, shown, **writing)
    page.box.stop(events.stop, None, None, js=TO_BOX, **AT_ONCE)
    page.chat.undo(events.undo, [page.stored, page.picked], shown, **AT_ONCE)
    gr.on([page.chat.clear, page.fresh.click], events.clear, [page.picked, page.raw], shown, **AT_ONCE)
    page.chat.select(events.select, page.stored, shown, **QUIET)
    page.base_chat.select(events.select_base, page.stored, shown, **QUIET)
    page.routing.pick(events.pick, page.stored, shown, **QUIET)
    page.routing.compare(events.compare, page.stored, shown, **QUIET)
    page.routing.ask(events.keep_alternatives, page.stored, shown, **QUIET)
    page.routing.branch(events.branch, [page.stored, page.system, *page.sampling.values()], shown, **writing)
    page.export.click(events.export, page.stored, page.exported, **QUIET).success(
        None, page.exported, page.exported, js=DOWNLOAD, **QUIET
    )
    page.load.upload(events.load, [page.load, page.picked], shown, **QUIET)
    arranging: dict[str, Any] = {
        "fn": events.arrange, "inputs": [page.stored, page.picked], "outputs": [*shown, page.beside],
        "trigger_mode": "always_last", **AT_ONCE,
    }  # fmt: skip
    gr.on(
        [page.adapter.input, page.beside.input],
        None,
        [page.adapter, page.beside],
        page.picked,
        js=PICK,
        trigger_mode="multiple",
        **QUIET,
    ).then(**arranging)
    page.adapter.focus(events.open_list, page.listed, [page.adapter, page.listed], **AT_ONCE)
    page.upload.upload(events.upload, [page.upload, page.name], [*picking, page.name], **QUIET).success(**arranging)
    page.delete.click(events.delete, [page.picked, page.confirmed], picking, js=CONFIRM_DELETE, **QUIET).success(
        **arranging
    )
    page.picker.wire(lambda change: change(events.refresh, page.picked, picking, **AT_ONCE).success(**arranging))
    # Messages are told by a queued event, because Gradio shows none of an unqueued one.
    page.stored.show(events.show, [page.stored, page.picked], shown, **AT_ONCE).success(
        events.tell, page.notice, None, **QUIET
    )
    browser.page().load(events.open_page, page.picked, [page.notice, *picking], **AT_ONCE).success(
        events.tell, page.notice, None, js=FORGET_ADDRESS, **QUIET
    ).success(**arranging)
    browser.page().load(events.take_over, [page.earlier, page.picked], [*shown, page.earlier], **AT_ONCE).success(
        events.tell, page.notice, None, **QUIET
    )
    _wire_settings(page, events)


def _wire_settings(page: _Page, events: ChatEvents) -> None:
    sampling: list[Any] = [*page.sampling.values()]
    described: dict[str, Any] = {
        "outputs": [page.system, page.recommendation, page.chat, page.raw, *sampling], **AT_ONCE
    }  # fmt: skip
    changed = [browser.page().load, page.picker.loaded.change]
    gr.on(changed, events.describe_model, [page.stored, page.chosen_sampling], **described)
    page.reset.click(events.describe_model, page.stored, **described).success(
        None, None, page.chosen_sampling, js=NOTHING
    )
    choosing: dict[str, Any] = {"js": KEEP_SAMPLING, "trigger_mode": "always_last", **QUIET}
    gr.on([each.input for each in sampling], None, [page.picker.model, *sampling], page.chosen_sampling, **choosing)
    page.raw.input(events.choose_raw, [page.stored, page.raw], page.outputs(), **AT_ONCE)
    prompting = [page.box, page.stored, page.system, *page.sampling.values()]
    page.prompt.expand(events.show_prompt, prompting, page.prompt_text, **AT_ONCE)
