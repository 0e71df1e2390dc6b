"""What the chat tab does: values in, values out. The components are in `tabs/chat.py`.

    handlers = ChatHandlers(engine)
    for shown in handlers.send("Hello", stored="", system="", session="s", settings=[...]): ...

The browser holds the conversation (`stored`, JSON); handlers take it, check it and give the new one back, so the server
keeps nothing but traces and the answers that are being written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr

from jetmoe.routing import RoutingTrace
from studio.errors import StudioError
from studio.ui import conversation as talk
from studio.ui.answering import Draft, write_answer
from studio.ui.conversation import Answer, Conversation
from studio.ui.conversation_file import export_conversation, import_conversation
from studio.ui.messages import chat_messages, pending_message, statistics
from studio.ui.routing_panel import message as routing_message
from studio.ui.routing_panel import nothing
from studio.ui.running import Run, Running
from studio.ui.sampling_form import read_sampling
from studio.ui.trace_store import traces

if TYPE_CHECKING:
    from studio.backend.engine import Engine, Sampling

STORE_EVERY = 20
"""Drafts between two writes into the browser's storage, about two seconds."""


class Shown(NamedTuple):
    """New values of the page's parts, in the order in which the tab lists its outputs; None leaves a part alone."""

    chat: Any = None
    stored: Any = None
    box: Any = None
    routing: Any = None
    stats: Any = None
    system: Any = None

    def values(self) -> tuple[Any, ...]:
        return tuple(gr.skip() if value is None else value for value in self)


def idle(text: str | None = None) -> Any:
    """The text box when a message can be sent, with this text or the one that is in it."""
    return _box(text, submit_btn="Send", stop_btn=False)


def busy(text: str | None = None) -> Any:
    return _box(text, submit_btn=False, stop_btn="Stop")


def _box(text: str | None, **changes: Any) -> Any:
    return gr.update(**(changes if text is None else changes | {"value": text}))


class ChatHandlers:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.running = Running()

    def send(self, text: str, stored: str, system: str, session: str, settings: list[Any]) -> Iterator[Shown]:
        before = self._opened(stored, system)
        asked = talk.append_user(before, text)
        yield from self._answer(before, asked, read_sampling(*settings), session, sent=text)

    def retry(self, stored: str, system: str, session: str, settings: list[Any]) -> Iterator[Shown]:
        before = self._opened(stored, system)
        yield from self._answer(before, talk.retry(before), read_sampling(*settings), session)

    def edit(
        self, index: int, text: str, stored: str, system: str, session: str, settings: list[Any]
    ) -> Iterator[Shown]:
        before = self._opened(stored, system)
        try:
            asked = talk.edit(before, index, text)
        except StudioError:
            yield Shown(chat=chat_messages(before))  # the page has put the new text into the message already
            raise
        yield from self._answer(before, asked, read_sampling(*settings), session)

    def undo(self, stored: str, session: str) -> Shown:
        self.running.check_idle(session)
        left, text = talk.undo(talk.from_json(stored))
        return self._restored(left, text)

    def clear(self, session: str) -> Shown:
        """A new conversation; the answer that is being written is stopped and dropped."""
        self.running.stop(session, discard=True)
        return self._restored(Conversation(), "")._replace(system=None)

    def stop(self, session: str) -> None:
        self.running.stop(session)

    def open_page(self, stored: str) -> Shown:
        """What a refresh brings back. A question that was still unanswered goes into the text box."""
        try:
            conversation, text = talk.from_json(stored), ""
            if conversation.turns and conversation.turns[-1].role == "user":
                conversation, text = talk.undo(conversation)
        except StudioError as error:
            gr.Warning(f"The conversation kept in this browser can't be read and is left out. {error}")
            conversation, text = Conversation(), ""
        return self._restored(conversation, text)

    def export_file(self, stored: str, session: str) -> str:
        self.running.check_idle(session)
        conversation = talk.from_json(stored)
        if not conversation.turns:
            raise StudioError("There is nothing to export yet. Send a message first.")
        return export_conversation(conversation, lambda answer: self._trace(answer)[0])

    def import_file(self, data: bytes, session: str) -> Shown:
        self.running.check_idle(session)
        return self._restored(import_conversation(data, traces.open), None)

    def show_routing(self, stored: str, number: int) -> Shown:
        """The routing of answer `number`, computed again where it is no longer known."""
        conversation = talk.from_json(stored)
        places = conversation.answers()
        if type(number) is not int or not 0 <= number < len(places):
            raise StudioError("This conversation has no such answer. Reload the page.")
        answer = conversation.turns[places[number]].answer or Answer()
        trace, recomputed = self._trace(answer)
        if trace is None:
            raise StudioError(_why_lost(answer, self.engine.status().model_id))
        if recomputed:
            answer = replace(answer, trace_id=traces.open(trace))
            turn = replace(conversation.turns[places[number]], answer=answer)
            turns = (*conversation.turns[: places[number]], turn, *conversation.turns[places[number] + 1 :])
            stored = talk.to_json(replace(conversation, turns=turns))
        note = f"answer {number + 1}" + (" · recomputed" if recomputed else "")
        last = len(places) - 1
        shown = routing_message(answer.trace_id, trace, len(trace), number, last, picked=True, note=note)
        return Shown(stored=stored if recomputed else None, routing=shown, stats=statistics(answer))

    def show_message(self, stored: str, index: int) -> Shown:
        """The routing of the answer at message `index`, or of the answer to that message."""
        places = talk.from_json(stored).answers()
        after = [number for number, place in enumerate(places) if place >= index]
        return self.show_routing(stored, after[0]) if after else Shown()

    def _opened(self, stored: str, system: str) -> Conversation:
        return replace(talk.from_json(stored), system=talk.checked_text(system or "", "system prompt"))

    def _answer(
        self, before: Conversation, asked: Conversation, sampling: Sampling, session: str, sent: str | None = None
    ) -> Iterator[Shown]:
        """Streams the answer to `asked`; where there is none, it is `before` again, and `sent` is back in the box."""
        with self.running.answer(session) as run:
            base, draft = chat_messages(asked), Draft()
            yield Shown([*base, pending_message(draft)], talk.to_json(asked), busy("" if sent is not None else None))
            try:
                for draft, shown in self._drafts(base, asked, sampling, run):  # noqa: B007
                    yield shown
            except Exception:
                yield self._ended(before, asked, draft, sent)
                raise
            if not run.discarded:
                yield self._ended(before, asked, draft, sent)

    def _drafts(
        self, base: list[Any], asked: Conversation, sampling: Sampling, run: Run
    ) -> Iterator[tuple[Draft, Shown]]:
        number, sent_rows, shown = len(asked.answers()), [0, 0], 0
        for draft in write_answer(self.engine, asked, sampling, run.cancel):
            if run.discarded:
                continue
            trace = traces.get(draft.answer.trace_id)
            routing = None
            if trace is not None:
                # From where the message before the last one ended: an update that Gradio merges loses nothing.
                routing = routing_message(draft.answer.trace_id, trace, sent_rows[0], number, number)
                sent_rows = [sent_rows[1], len(trace)]
            shown += 1
            keep = draft.text and shown % STORE_EVERY == 0
            stored = talk.to_json(talk.append_assistant(asked, draft.text, draft.answer)) if keep else None
            yield draft, Shown([*base, pending_message(draft)], stored, None, routing, statistics(draft.answer))

    def _ended(self, before: Conversation, asked: Conversation, draft: Draft, sent: str | None) -> Shown:
        if not draft.text:
            return Shown(chat_messages(before), talk.to_json(before), idle(sent))
        conversation = talk.append_assistant(asked, draft.text, draft.answer)
        return Shown(chat_messages(conversation), talk.to_json(conversation), idle(), stats=statistics(draft.answer))

    def _restored(self, conversation: Conversation, text: str | None) -> Shown:
        """Everything on the page from a conversation; `text` goes into the text box."""
        places = conversation.answers()
        answer = conversation.turns[places[-1]].answer if places else None
        trace = traces.get(answer.trace_id) if answer else None
        routing = nothing("Click an answer, and its routing is computed again." if places else "")
        if answer is not None and trace is not None:
            last = len(places) - 1
            routing = routing_message(answer.trace_id, trace, len(trace), last, last, picked=True)
        stats = statistics(answer) if answer else ""
        return Shown(
            chat_messages(conversation), talk.to_json(conversation), idle(text), routing, stats, conversation.system
        )

    def _trace(self, answer: Answer) -> tuple[RoutingTrace | None, bool]:
        """The trace of an answer, and whether it had to be computed again; None where that is impossible."""
        trace = traces.get(answer.trace_id)
        if trace is not None or not answer.token_ids or answer.model_id != self.engine.status().model_id:
            return trace, False
        return self.engine.replay(answer.token_ids, answer.prompt_tokens), True


def _why_lost(answer: Answer, model_id: str | None) -> str:
    if not answer.token_ids:
        return "The routing of this answer was not kept: the conversation is too long. Ask again to see it."
    return f"This answer was written by {answer.model_id or 'another model'}, not by {model_id}. Load that model first."
