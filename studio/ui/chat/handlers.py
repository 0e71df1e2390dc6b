"""Handlers of the Chat tab: plain values in, plain values out. The components are in `tab.py`.

    handlers = ChatHandlers(engine)
    for shown in handlers.send("Hello", stored="", system="", session="s", settings=[...]): ...

The browser stores the conversation (`stored`, JSON). Handlers check it and return the new one, so the server keeps only
traces and the answers in progress.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr

from jetmoe.routing import RoutingTrace
from studio.analysis.flips import flips
from studio.backend.adapters.uploads import Choice, delete_upload
from studio.errors import StudioError
from studio.ui.chat import conversation as talk
from studio.ui.chat.answering import Draft, write_answer
from studio.ui.chat.conversation import Answer, Conversation, Reply
from studio.ui.chat.conversation_file import export_conversation, import_conversation
from studio.ui.chat.messages import chat_messages, heading, pending_message, statistics
from studio.ui.chat.sampling_form import read_sampling
from studio.ui.common.picked_adapter import Picked, fitting, offered, read_picked
from studio.ui.common.running import Run, Running
from studio.ui.common.trace_store import traces
from studio.ui.routing.routing_panel import message as routing_message
from studio.ui.routing.routing_panel import nothing
from studio.ui.server.identity import Owned

if TYPE_CHECKING:
    from studio.backend.chat.engine import Engine, Sampling

STORE_EVERY = 20
"""Drafts between two writes to browser storage, about two seconds."""


class Shown(NamedTuple):
    """New values of the tab's outputs, in their order; None leaves an output unchanged."""

    chat: Any = None
    stored: Any = None
    box: Any = None
    routing: Any = None
    stats: Any = None
    system: Any = None
    base_chat: Any = None
    base_stats: Any = None
    title: Any = None
    """Heading of the conversation when two are side by side."""
    base_side: Any = None
    """Column of the base model's conversation."""
    notice: Any = None
    """Warning to show once the page is open."""

    def values(self) -> tuple[Any, ...]:
        return tuple(gr.skip() if value is None else value for value in self)


def idle(text: str | None = None) -> Any:
    """Return the text box ready to send; `text` replaces its content."""
    return _box(text, submit_btn="Send", stop_btn=False)


def busy(text: str | None = None) -> Any:
    return _box(text, submit_btn=False, stop_btn="Stop")


def _box(text: str | None, **changes: Any) -> Any:
    return gr.update(**(changes if text is None else changes | {"value": text}))


@dataclass(frozen=True)
class Asked:
    """A message being answered, by one model or by two side by side."""

    conversation: Conversation
    """Ends with the message."""
    messages: list[Any]
    base_messages: list[Any] | None
    """Messages of the base model's side; None if it is hidden."""
    sampling: Sampling
    adapter: Choice | None = None
    beside: bool = False
    """Whether the base model answers too."""
    own: Draft = field(default_factory=Draft)
    base: Draft = field(default_factory=lambda: Draft(waiting="Waiting for the adapter's answer …"))

    def answered(self) -> Conversation:
        """Return the conversation with the text so far."""
        return talk.append_assistant(self.conversation, self.own.text, self.own.answer, self._base_reply())

    def _base_reply(self) -> Reply | None:
        answer = self.base.answer
        if not self.base.text and answer.finish:
            answer = replace(answer, notices=(*answer.notices, "The answer is empty: the model stopped at once."))
        return Reply(self.base.text, answer) if self.base.text or answer.finish else None

    def sides(self) -> Shown:
        """Return the current messages and statistics."""
        shown = Shown([*self.messages, pending_message(self.own)], stats=statistics(self.own.answer))
        if self.base_messages is None or not self.beside:
            return shown._replace(base_chat=self.base_messages)
        base_chat = [*self.base_messages, pending_message(self.base)]
        return shown._replace(base_chat=base_chat, base_stats=statistics(self.base.answer))


class ChatHandlers(Owned):
    """Handlers for one owner. `picked` is a value for `picked_adapter.read_picked`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.running = Running()

    def send(
        self, text: str, stored: str, system: str, session: str, settings: list[Any], picked: Any = None
    ) -> Iterator[Shown]:
        before = self._opened(stored, system)
        asked = self._asked(before, talk.append_user(before, text), settings, picked)
        yield from self._answer(before, asked, session, sent=text)

    def retry(self, stored: str, system: str, session: str, settings: list[Any], picked: Any = None) -> Iterator[Shown]:
        before = self._opened(stored, system)
        yield from self._answer(before, self._asked(before, talk.retry(before), settings, picked), session)

    def edit(
        self, index: int, text: str, stored: str, system: str, session: str, settings: list[Any], picked: Any = None
    ) -> Iterator[Shown]:
        before = self._opened(stored, system)
        try:
            asked = self._asked(before, talk.edit(before, index, text), settings, picked)
        except StudioError:
            yield Shown(chat=chat_messages(before))  # undoes the edit that the page already shows
            raise
        yield from self._answer(before, asked, session)

    def undo(self, stored: str, session: str, picked: Any = None) -> Shown:
        self.running.check_idle(session)
        left, text = talk.undo(talk.from_json(stored))
        return self._restored(left, text, picked)

    def clear(self, session: str, picked: Any = None) -> Shown:
        """Start a new conversation; an answer in progress is stopped and dropped."""
        self.running.stop(session, discard=True)
        return self._restored(Conversation(), "", picked)._replace(system=None)

    def stop(self, session: str) -> None:
        self.running.stop(session)

    def open_page(self, stored: str, picked: Any = None) -> Shown:
        """Restore the page after a refresh. An unanswered question goes back into the text box."""
        try:
            conversation, text = talk.from_json(stored), ""
            if conversation.turns and conversation.turns[-1].role == "user":
                conversation, text = talk.undo(conversation)
        except StudioError as error:
            notice = f"The conversation stored in this browser can't be read, so it is not shown. {error}"
            return self._restored(Conversation(), "", picked)._replace(notice=notice)
        # None keeps text that was typed meanwhile.
        return self._restored(conversation, text or None, picked)

    def pick(self, stored: Any, wanted: str | None = None) -> tuple[Picked, list[tuple[str, str]]]:
        """Return a selection that fits the model (`wanted`, else `stored`, else none), and the dropdown's choices."""
        choices, picked = self._offered(), read_picked(stored)
        fit = [adapter for _, adapter in choices]
        if wanted and wanted in fit:
            return replace(picked, adapter=wanted), choices
        return (picked if picked.adapter in fit else Picked()), choices

    def delete_adapter(self, stored: Any) -> tuple[Picked, list[tuple[str, str]], str]:
        """Delete the selected adapter, which must be an upload; return the new selection, the choices and its name."""
        adapter = read_picked(stored).adapter
        if not adapter:
            raise StudioError("The base model can't be deleted. Select an uploaded adapter first.")
        deleted = delete_upload(adapter, self.owner)
        self.engine.remove_adapter(adapter)
        return *self.pick(None), deleted.name

    def arrange(self, stored: str, picked: Any) -> Shown:
        """Show one conversation or two side by side, after the selection has changed."""
        return self._sides(talk.from_json(stored), picked)

    def export_file(self, stored: str, session: str) -> str:
        self.running.check_idle(session)
        conversation = talk.from_json(stored)
        if not conversation.turns:
            raise StudioError("There is nothing to export yet. Send a message first.")
        return export_conversation(conversation, lambda answer: self._trace(answer)[0])

    def import_file(self, data: bytes, session: str, picked: Any = None) -> Shown:
        self.running.check_idle(session)
        conversation = import_conversation(data, lambda trace: traces.open(trace, self.owner))
        return self._restored(conversation, None, picked)

    def show_routing(self, stored: str, number: int, on_base_side: bool = False) -> Shown:
        """Show the routing of answer `number`; recompute it if its trace was dropped."""
        conversation, turn = self._turn(stored, number)
        on_base_side = on_base_side and turn.base is not None
        return self._shown_routing(conversation, number, on_base_side)

    def compare(self, stored: str, number: int) -> Shown:
        """Show the routing of answer `number`, and where the base model routes its tokens differently."""
        conversation, turn = self._turn(stored, number)
        if not turn.answer or not turn.answer.adapter:
            raise StudioError("The base model itself wrote this answer. Select an answer by an adapter.")
        return self._shown_routing(conversation, number, compared=True)

    def show_message(self, stored: str, index: int, on_base_side: bool = False) -> Shown:
        """Show the routing of the answer at message `index`, or of the answer to that message."""
        places = talk.from_json(stored).answers()
        after = [number for number, place in enumerate(places) if place >= index]
        return self.show_routing(stored, after[0], on_base_side) if after else Shown()

    def _offered(self) -> list[tuple[str, str]]:
        return offered(self.engine.status().model_id, self.owner)

    def _opened(self, stored: str, system: str) -> Conversation:
        return replace(talk.from_json(stored), system=talk.checked_text(system or "", "system prompt"))

    def _asked(
        self, before: Conversation, conversation: Conversation, settings: list[Any], stored_picked: Any
    ) -> Asked:
        picked, sampling = read_picked(stored_picked), read_sampling(*settings)
        adapter = fitting(picked.adapter, self.engine.status().model_id, self.owner)
        if picked.beside and sampling.seed is None:
            sampling = replace(sampling, seed=random.randrange(2**31))  # the same for both answers
        in_view = picked.beside or before.has_base_side
        base = chat_messages(conversation.base_side()) if in_view else None
        return Asked(conversation, chat_messages(conversation), base, sampling, adapter, picked.beside)

    def _answer(self, before: Conversation, asked: Asked, session: str, sent: str | None = None) -> Iterator[Shown]:
        """Stream the answer. If there is none, restore `before`, and put `sent` back into the text box."""
        with self.running.answer(session) as run:
            box = busy("" if sent is not None else None)
            yield asked.sides()._replace(stored=talk.to_json(asked.conversation), box=box)
            try:
                for asked, shown in self._drafts(asked, run):  # noqa: B007, B020
                    yield shown
            except Exception:
                yield self._ended(before, asked, sent)
                raise
            if not run.discarded:
                yield self._ended(before, asked, sent)

    def _drafts(self, asked: Asked, run: Run) -> Iterator[tuple[Asked, Shown]]:
        """Generate the adapter's answer first, so that a conversation that is stopped early continues with it."""
        shown, number, sent_rows = 0, len(asked.conversation.answers()), [0, 0]
        for draft in write_answer(
            self.engine, asked.conversation, asked.sampling, run.cancel, asked.adapter, self.owner
        ):
            if run.discarded:
                continue
            asked = replace(asked, own=draft)
            trace = traces.get(draft.answer.trace_id, self.owner)
            routing = None
            if trace is not None:
                # Repeat the rows of the last message, because Gradio may merge two updates into one.
                routing = routing_message(draft.answer.trace_id, trace, sent_rows[0], number, number)
                sent_rows = [sent_rows[1], len(trace)]
            shown += 1
            yield asked, asked.sides()._replace(routing=routing, stored=_kept(asked, shown))
        if not asked.beside or not asked.own.text or run.cancel.is_set():
            return
        yield asked, Shown(stored=talk.to_json(asked.answered()))
        base_side = asked.conversation.base_side()
        for draft in write_answer(self.engine, base_side, asked.sampling, run.cancel, owner=self.owner):
            if run.discarded:
                continue
            asked = replace(asked, base=draft)
            shown += 1
            yield asked, asked.sides()._replace(stored=_kept(asked, shown))
        if not run.cancel.is_set():
            self._compare(asked.own.answer)

    def _ended(self, before: Conversation, asked: Asked, sent: str | None) -> Shown:
        if not asked.own.text:
            if asked.own.answer.finish == "stop":
                gr.Info("The answer is empty: the model stopped at once. Try again, or rephrase the question.")
            return self._shown(before, asked)._replace(
                stored=talk.to_json(before), box=idle(sent), stats=None, base_stats=None
            )
        conversation, answer = asked.answered(), asked.own.answer
        shown = self._shown(conversation, asked)._replace(
            stored=talk.to_json(conversation), box=idle(), stats=statistics(answer)
        )
        trace = traces.get(answer.trace_id, self.owner) if answer.adapter else None
        if trace is None:
            return shown
        number = len(asked.conversation.answers())
        return shown._replace(routing=routing_message(answer.trace_id, trace, len(trace), number, number, adapted=True))

    def _restored(self, conversation: Conversation, text: str | None, picked: Any) -> Shown:
        """Return all outputs for a conversation; `text` goes into the text box."""
        places = conversation.answers()
        answer = conversation.turns[places[-1]].answer if places else None
        trace = traces.get(answer.trace_id, self.owner) if answer else None
        routing = nothing("Click an answer to recompute its routing." if places else "")
        if answer is not None and trace is not None:
            last, adapted = len(places) - 1, bool(answer.adapter)
            routing = routing_message(answer.trace_id, trace, len(trace), last, last, picked=True, adapted=adapted)
        return self._sides(conversation, picked)._replace(
            chat=chat_messages(conversation),
            stored=talk.to_json(conversation),
            box=idle(text),
            routing=routing,
            stats=statistics(answer) if answer else "",
            system=conversation.system,
        )

    def _sides(self, conversation: Conversation, stored_picked: Any) -> Shown:
        """Return whether two sides are shown, and the base model's side. Existing comparisons stay visible."""
        picked = read_picked(stored_picked)
        beside = picked.beside or conversation.has_base_side
        if not beside:
            return Shown(title=gr.update(visible=False), base_side=gr.update(visible=False))
        titles = [turn.answer.adapter_title for turn in conversation.turns if turn.answer and turn.answer.adapter]
        if picked.adapter:
            titles += [title for title, adapter in self._offered() if adapter == picked.adapter]
        title = gr.update(value=heading(titles[-1] if titles else "Adapter"), visible=True)
        return self._both(conversation)._replace(chat=None, title=title, base_side=gr.update(visible=True))

    def _shown(self, conversation: Conversation, asked: Asked) -> Shown:
        return Shown(chat_messages(conversation)) if asked.base_messages is None else self._both(conversation)

    def _both(self, conversation: Conversation) -> Shown:
        base_side = conversation.base_side()
        places = conversation.answers()
        answer = base_side.turns[places[-1]].answer if places else None
        stats = statistics(answer) if answer else ""
        return Shown(chat_messages(conversation), base_chat=chat_messages(base_side), base_stats=stats)

    def _turn(self, stored: str, number: int) -> tuple[Conversation, talk.Turn]:
        conversation = talk.from_json(stored)
        places = conversation.answers()
        if type(number) is not int or not 0 <= number < len(places):
            raise StudioError("This conversation has no such answer. Reload the page.")
        return conversation, conversation.turns[places[number]]

    def _shown_routing(
        self, conversation: Conversation, number: int, on_base_side: bool = False, compared: bool = False
    ) -> Shown:
        places = conversation.answers()
        turn = conversation.turns[places[number]]
        answer = (turn.base.answer if on_base_side and turn.base else turn.answer) or Answer()
        trace, recomputed = self._trace(answer)
        if trace is None:
            raise StudioError(_why_lost(answer, self.engine.status().model_id))
        if recomputed:
            answer = replace(answer, trace_id=traces.open(trace, self.owner))
            conversation = talk.with_answer(conversation, places[number], answer, on_base_side)
        if compared:
            self._compare(answer)
        note = f"answer {number + 1}{' of the base model' * on_base_side}{' · recomputed' * recomputed}"
        last, adapted = len(places) - 1, bool(answer.adapter)
        shown = routing_message(
            answer.trace_id, trace, len(trace), number, last, picked=not compared, note=note, adapted=adapted
        )
        stats = {"base_stats" if on_base_side else "stats": statistics(answer)}
        return Shown(stored=talk.to_json(conversation) if recomputed else None, routing=shown, **stats)

    def _compare(self, answer: Answer) -> None:
        """Route the tokens of an adapter's answer with the base model, so that the panel can show the differences."""
        trace = traces.get(answer.trace_id, self.owner)
        if trace is None or traces.base(answer.trace_id) is not None:
            return
        if answer.model_id != self.engine.status().model_id:
            raise StudioError(_why_lost(answer, self.engine.status().model_id))
        base = self.engine.replay(answer.token_ids, answer.prompt_tokens)
        try:
            flips(base, trace, "expert")
        except ValueError as error:  # an imported file may name the wrong model
            raise StudioError("The routing of this answer is from another model. Ask again to compare it.") from error
        traces.compare(answer.trace_id, base)

    def _trace(self, answer: Answer) -> tuple[RoutingTrace | None, bool]:
        """Return the trace of an answer, and whether it was recomputed; None if that is impossible."""
        trace, model_id = traces.get(answer.trace_id, self.owner), self.engine.status().model_id
        if trace is not None or not answer.token_ids or answer.model_id != model_id:
            return trace, False
        if answer.adapter and answer.adapter not in [adapter for _, adapter in self._offered()]:
            return None, False
        return self.engine.replay(answer.token_ids, answer.prompt_tokens, adapter=answer.adapter or None), True


def _kept(asked: Asked, shown: int) -> str | None:
    """Return the value for browser storage every `STORE_EVERY` drafts, otherwise None."""
    return talk.to_json(asked.answered()) if asked.own.text and shown % STORE_EVERY == 0 else None


def _why_lost(answer: Answer, model_id: str | None) -> str:
    if not answer.token_ids:
        return "The routing of this answer was not stored, because the conversation is too long. Ask again to see it."
    if answer.model_id != model_id:
        wrote = answer.model_id or "another model"
        return f"This answer was written by {wrote}, not by {model_id}. Load that model first."
    return (
        f"This answer was written by the adapter {answer.adapter_title!r}, which no longer exists, so its routing "
        "can't be recomputed. Ask again with another adapter."
    )
