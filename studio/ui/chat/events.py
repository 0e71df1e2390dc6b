"""Event listeners of the Chat tab, from component values to component updates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.backend.adapters.uploads import import_adapter
from studio.errors import StudioError
from studio.ui.chat.handlers import ChatHandlers
from studio.ui.chat.messages import welcome
from studio.ui.chat.sampling_form import kept, recommendation, recommended
from studio.ui.chat.shown import Shown
from studio.ui.common import browser
from studio.ui.common.picked_adapter import Picked, keep_listed, offered, read_picked
from studio.ui.common.shown_errors import shows_errors
from studio.ui.server.identity import owner_of

if TYPE_CHECKING:
    from studio.backend.chat.engine import Engine


STEPS = {"previous": -1, "next": 1}
"""The options of an answer that show another variant."""


class ChatEvents:
    """Event listeners of the Chat tab; each uses the owner and session of its request."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.handlers = ChatHandlers(engine)

    @shows_errors
    def send(
        self, request: gr.Request, text: str, stored: str, system: str, picked: Any, *settings: Any
    ) -> Iterator[tuple[Any, ...]]:
        handlers, session = self.handlers.of(request), browser.session(request)
        for values in handlers.send(text, stored, system, session, list(settings), picked):
            yield values.values()

    @shows_errors
    def send_example(
        self, request: gr.Request, example: gr.SelectData, stored: str, system: str, picked: Any, *settings: Any
    ) -> Iterator[tuple[Any, ...]]:
        text = example.value.get("text") if isinstance(example.value, dict) else ""
        handlers, session = self.handlers.of(request), browser.session(request)
        for values in handlers.send(text or "", stored, system, session, list(settings), picked):
            yield values.values()

    @shows_errors
    def retry(
        self, request: gr.Request, stored: str, system: str, picked: Any, *settings: Any
    ) -> Iterator[tuple[Any, ...]]:
        handlers, session = self.handlers.of(request), browser.session(request)
        for values in handlers.retry(stored, system, session, list(settings), picked):
            yield values.values()

    @shows_errors
    def edit(
        self, request: gr.Request, edited: gr.EditData, stored: str, system: str, picked: Any, *settings: Any
    ) -> Iterator[tuple[Any, ...]]:
        text = edited.value if isinstance(edited.value, str) else ""
        handlers, session = self.handlers.of(request), browser.session(request)
        for values in handlers.edit(_index(edited.index), text, stored, system, session, list(settings), picked):
            yield values.values()

    @shows_errors
    def choose_option(
        self, request: gr.Request, option: gr.SelectData, stored: str, system: str, picked: Any, *settings: Any
    ) -> Iterator[tuple[Any, ...]]:
        """Continue the last answer, or show another variant of it."""
        handlers, session = self.handlers.of(request), browser.session(request)
        if option.value in STEPS:
            yield handlers.switch(STEPS[option.value], stored, session, picked).values()
            return
        for values in handlers.continue_answer(stored, system, session, list(settings)):
            yield values.values()

    @shows_errors
    def branch(
        self, request: gr.Request, chosen: gr.EventData, stored: str, system: str, *settings: Any
    ) -> Iterator[tuple[Any, ...]]:
        handlers, session = self.handlers.of(request), browser.session(request)
        answer, token, token_id = (chosen._data.get(name) for name in ("answer", "token", "id"))
        for values in handlers.branch(answer, token, token_id, stored, system, session, list(settings)):
            yield values.values()

    @shows_errors
    def keep_alternatives(self, request: gr.Request, stored: str, chosen: gr.EventData) -> tuple[Any, ...]:
        answer, token = chosen._data.get("answer"), chosen._data.get("token")
        return self.handlers.of(request).keep_alternatives(stored, answer, token).values()

    @shows_errors
    def describe_model(self, stored: str, stored_sampling: Any = None) -> tuple[Any, ...]:
        """Show what the loaded model brings along: its system prompt, its settings, and what it is for.

        Settings that this browser stored for the model take precedence.
        """
        status = self.engine.status()
        defaults, title = status.defaults, status.title or "The model"
        none = "Sent at the start of every conversation. Empty: none is sent."
        default = "Sent at the start of every conversation. Empty: the chat template's own is sent, shown in grey."
        system = gr.update(placeholder=defaults.system, info=default if defaults.system else none)
        placeholder = gr.update(placeholder=welcome(status.model_id))
        settings = kept(stored_sampling, status.model_id) or recommended(defaults)
        raw = self.handlers.is_raw(stored)
        return system, recommendation(title, defaults), placeholder, raw, *settings

    @shows_errors
    def undo(self, request: gr.Request, stored: str, picked: Any) -> tuple[Any, ...]:
        return self.handlers.of(request).undo(stored, browser.session(request), picked).values()

    @shows_errors
    def clear(self, request: gr.Request, picked: Any, raw: Any) -> tuple[Any, ...]:
        return self.handlers.of(request).clear(browser.session(request), picked, raw is True).values()

    @shows_errors
    def choose_raw(self, request: gr.Request, stored: str, raw: Any) -> tuple[Any, ...]:
        return self.handlers.of(request).choose_raw(stored, raw).values()

    @shows_errors
    def show_prompt(self, request: gr.Request, text: str, stored: str, system: str, *settings: Any) -> str:
        try:
            prompt = self.handlers.of(request).prompt_text(text or "", stored, system, list(settings))
        except StudioError as error:
            return f"<p>{escape(str(error))}</p>"
        return f"<pre>{escape(prompt)}</pre>"

    @shows_errors
    def stop(self, request: gr.Request) -> None:
        self.handlers.of(request).stop(browser.session(request))

    @shows_errors
    def open_page(self, request: gr.Request, kept: Any) -> tuple[Any, ...]:
        wanted = request.query_params.get("adapter")
        picked, choices = self.handlers.of(request).pick(kept, wanted)
        if wanted and wanted == picked.adapter:
            picked = replace(picked, beside=True)
        gone = "The adapter in the URL was deleted or belongs to another model."
        return (gone if wanted and wanted != picked.adapter else "", *_picker(picked, choices))

    @shows_errors
    def show(self, request: gr.Request, stored: str, picked: Any) -> tuple[Any, ...]:
        return self.handlers.of(request).open(stored, browser.session(request), picked).values()

    @shows_errors
    def take_over(self, request: gr.Request, earlier: str, picked: Any) -> tuple[Any, ...]:
        """Show the conversation of an earlier version. One that can't be read is removed, with a warning."""
        try:
            return (*self.handlers.of(request).take_over(earlier, picked).values(), gr.skip())
        except StudioError as error:
            notice = f"The conversation that an earlier version stored in this browser can't be read. {error}"
            return (*Shown(notice=notice).values(), "")

    @shows_errors
    def tell(self, notice: str) -> None:
        if notice:
            gr.Warning(escape(notice))

    @shows_errors
    def refresh(self, request: gr.Request, kept: Any) -> tuple[Any, ...]:
        return _picker(*self.handlers.of(request).pick(kept))

    @shows_errors
    def open_list(self, request: gr.Request, listed: list[tuple[str, str]]) -> Any:
        choices = keep_listed(offered(self.engine.status().model_id, owner_of(request)), listed)
        return (gr.skip(), gr.skip()) if choices == listed else (gr.update(choices=choices), choices)

    @shows_errors
    def arrange(self, request: gr.Request, stored: str, kept: Any) -> tuple[Any, ...]:
        picked = read_picked(kept)
        # No value here, so that a checkbox that was checked meanwhile stays checked.
        switch = gr.update(interactive=True) if picked.adapter else gr.update(value=False, interactive=False)
        handlers = self.handlers.of(request)
        # The examples of an empty conversation are prompts from the rows of the adapter's run.
        chat = gr.update(examples=[{"text": text} for text in handlers.examples(picked.adapter)])
        return (*handlers.arrange(stored, kept)._replace(chat=chat).values(), switch)

    @shows_errors
    def upload(self, request: gr.Request, files: list[str], name: str) -> tuple[Any, ...]:
        model_id = self.engine.status().model_id
        if model_id is None:
            raise StudioError("An adapter needs a model, and none is loaded. Load one above the chat first.")
        choice = import_adapter([Path(file) for file in files or []], name or "", model_id, owner_of(request))
        gr.Info(f"{escape(choice.title)} is now selected.", title="Adapter uploaded")
        return (*_picker(*self.handlers.of(request).pick(None, choice.id)), "")

    @shows_errors
    def delete(self, request: gr.Request, kept: Any, confirmed: str) -> tuple[Any, ...]:
        if confirmed != "yes":
            return tuple(gr.skip() for _ in range(4))
        picked, choices, title = self.handlers.of(request).delete_adapter(kept)
        gr.Info(f"{escape(title)} was deleted.", title="Adapter deleted")
        return _picker(picked, choices)

    @shows_errors
    def export(self, request: gr.Request, stored: str) -> str:
        return self.handlers.of(request).export_file(stored, browser.session(request))

    @shows_errors
    def load(self, request: gr.Request, data: bytes, picked: Any) -> tuple[Any, ...]:
        return self.handlers.of(request).import_file(data, browser.session(request), picked).values()

    @shows_errors
    def select(self, request: gr.Request, stored: str, chosen: gr.SelectData) -> tuple[Any, ...]:
        return self.handlers.of(request).show_message(stored, _index(chosen.index)).values()

    @shows_errors
    def select_base(self, request: gr.Request, stored: str, chosen: gr.SelectData) -> tuple[Any, ...]:
        return self.handlers.of(request).show_message(stored, _index(chosen.index), on_base_side=True).values()

    @shows_errors
    def compare(self, request: gr.Request, stored: str, chosen: gr.EventData) -> tuple[Any, ...]:
        return self.handlers.of(request).compare(stored, chosen._data.get("answer")).values()

    @shows_errors
    def pick(self, request: gr.Request, stored: str, chosen: gr.EventData) -> tuple[Any, ...]:
        return self.handlers.of(request).show_routing(stored, chosen._data.get("answer")).values()


def _picker(picked: Picked, choices: list[tuple[str, str]]) -> tuple[Any, ...]:
    """Return new values for the dropdown, the checkbox, browser storage and the listed choices."""
    switch = gr.update(value=picked.beside, interactive=bool(picked.adapter))
    return gr.update(choices=choices, value=picked.adapter), switch, picked.kept(), choices


def _index(index: Any) -> int:
    first = index[0] if isinstance(index, list | tuple) and index else index
    if type(first) is not int:
        raise StudioError("This message can't be found. Reload the page.")
    return first
