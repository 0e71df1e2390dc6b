"""What the chat tab does: values in, values out. The components are in `tab.py`.

    handlers = ChatHandlers(engine)
    for shown in handlers.send("Hello", stored="", system="", session="s", settings=[...]): ...

The browser holds the conversation (`stored`, JSON); handlers take it, check it and give the new one back, so the server
keeps nothing but traces and the answers that are being written.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr

from jetmoe.routing import RoutingTrace
from studio.analysis.flips import flips
from studio.backend.adapters.find import find_id
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
"""Drafts between two writes into the browser's storage, about two seconds."""


class Shown(NamedTuple):
    """New values of the page's parts, in the order in which the tab lists its outputs; None leaves a part alone."""

    chat: Any = None
    stored: Any = None
    box: Any = None
    routing: Any = None
    stats: Any = None
    system: Any = None
    base_chat: Any = None
    base_stats: Any = None
    title: Any = None
    """Over the conversation, where another one is beside it."""
    base_side: Any = None
    """The column of the base model's side."""
    notice: Any = None
    """A sentence for the person, once the page is open."""

    def values(self) -> tuple[Any, ...]:
        return tuple(gr.skip() if value is None else value for value in self)


def idle(text: str | None = None) -> Any:
    """The text box when a message can be sent, with this text or the one that is in it."""
    return _box(text, submit_btn="Send", stop_btn=False)


def busy(text: str | None = None) -> Any:
    return _box(text, submit_btn=False, stop_btn="Stop")


def _box(text: str | None, **changes: Any) -> Any:
    return gr.update(**(changes if text is None else changes | {"value": text}))


@dataclass(frozen=True)
class Asked:
    """A message that is being answered, by one or by two who are shown side by side."""

    conversation: Conversation
    """Ends with the message."""
    messages: list[Any]
    base_messages: list[Any] | None
    """Of the base side, where it is in view."""
    sampling: Sampling
    adapter: Choice | None = None
    beside: bool = False
    """Whether the base is asked too."""
    own: Draft = field(default_factory=Draft)
    base: Draft = field(default_factory=lambda: Draft(waiting="Answers next …"))

    def answered(self) -> Conversation:
        """The conversation with what is written by now."""
        return talk.append_assistant(self.conversation, self.own.text, self.own.answer, self._base_reply())

    def _base_reply(self) -> Reply | None:
        answer = self.base.answer
        if not self.base.text and answer.finish:
            answer = replace(answer, notices=(*answer.notices, "The answer was empty: the model ended it at once."))
        return Reply(self.base.text, answer) if self.base.text or answer.finish else None

    def sides(self) -> Shown:
        """The messages and figures as they are now."""
        shown = Shown([*self.messages, pending_message(self.own)], stats=statistics(self.own.answer))
        if self.base_messages is None or not self.beside:
            return shown._replace(base_chat=self.base_messages)
        base_chat = [*self.base_messages, pending_message(self.base)]
        return shown._replace(base_chat=base_chat, base_stats=statistics(self.base.answer))


class ChatHandlers(Owned):
    """`picked` is what `picked_adapter.read_picked` reads."""

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
            yield Shown(chat=chat_messages(before))  # the page has put the new text into the message already
            raise
        yield from self._answer(before, asked, session)

    def undo(self, stored: str, session: str, picked: Any = None) -> Shown:
        self.running.check_idle(session)
        left, text = talk.undo(talk.from_json(stored))
        return self._restored(left, text, picked)

    def clear(self, session: str, picked: Any = None) -> Shown:
        """A new conversation; the answer that is being written is stopped and dropped."""
        self.running.stop(session, discard=True)
        return self._restored(Conversation(), "", picked)._replace(system=None)

    def stop(self, session: str) -> None:
        self.running.stop(session)

    def open_page(self, stored: str, picked: Any = None) -> Shown:
        """What a refresh brings back. A question that was still unanswered goes into the text box."""
        try:
            conversation, text = talk.from_json(stored), ""
            if conversation.turns and conversation.turns[-1].role == "user":
                conversation, text = talk.undo(conversation)
        except StudioError as error:
            notice = f"The conversation kept in this browser can't be read and is left out. {error}"
            return self._restored(Conversation(), "", picked)._replace(notice=notice)
        # Else what is typed already stays.
        return self._restored(conversation, text or None, picked)

    def pick(self, stored: Any, wanted: str | None = None) -> tuple[Picked, list[tuple[str, str]]]:
        """What is picked, as far as it fits the model, and the picker's choices.

        Args:
            wanted: the id of an adapter to pick instead, such as one that the page's address names.
        """
        choices, picked = self._offered(), read_picked(stored)
        fit = [adapter for _, adapter in choices]
        if wanted and wanted in fit:
            return replace(picked, adapter=wanted), choices
        return (picked if picked.adapter in fit else Picked()), choices

    def delete_adapter(self, stored: Any) -> tuple[Picked, list[tuple[str, str]], str]:
        """Delete the uploaded adapter that is picked; return the new pick, the picker's choices and its name.

        Raises:
            StudioError: none is picked, or it belongs to a run.
        """
        adapter = read_picked(stored).adapter
        if not adapter:
            raise StudioError("The base model can't be deleted. Pick an uploaded adapter first.")
        title = find_id(adapter, self.owner).name
        delete_upload(adapter, self.owner)
        self.engine.remove_adapter(adapter)
        return *self.pick(None), title

    def arrange(self, stored: str, picked: Any) -> Shown:
        """One conversation or two beside each other, after what is picked has changed."""
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
        """The routing of answer `number`, computed again where it is no longer known."""
        conversation, turn = self._turn(stored, number)
        on_base_side = on_base_side and turn.base is not None
        return self._shown_routing(conversation, number, on_base_side)

    def compare(self, stored: str, number: int) -> Shown:
        """The routing of answer `number`, and where the base routes its tokens otherwise."""
        conversation, turn = self._turn(stored, number)
        if not turn.answer or not turn.answer.adapter:
            raise StudioError("The base model itself wrote this answer. Pick one that an adapter wrote.")
        return self._shown_routing(conversation, number, compared=True)

    def show_message(self, stored: str, index: int, on_base_side: bool = False) -> Shown:
        """The routing of the answer at message `index`, or of the answer to that message."""
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
            sampling = replace(sampling, seed=random.randrange(2**31))  # one for both
        in_view = picked.beside or before.has_base_side
        base = chat_messages(conversation.base_side()) if in_view else None
        return Asked(conversation, chat_messages(conversation), base, sampling, adapter, picked.beside)

    def _answer(self, before: Conversation, asked: Asked, session: str, sent: str | None = None) -> Iterator[Shown]:
        """Streams the answer; where there is none, all is as `before` again, and `sent` is back in the box."""
        with self.running.answer(session) as run:
            box = busy("" if sent is not None else None)
            yield asked.sides()._replace(stored=talk.to_json(asked.conversation), box=box, stats=None, base_stats=None)
            try:
                for asked, shown in self._drafts(asked, run):  # noqa: B007, B020
                    yield shown
            except Exception:
                yield self._ended(before, asked, sent)
                raise
            if not run.discarded:
                yield self._ended(before, asked, sent)

    def _drafts(self, asked: Asked, run: Run) -> Iterator[tuple[Asked, Shown]]:
        """The adapter's answer first, so that a conversation that is stopped early goes on with it."""
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
                # From where the message before the last one ended: an update that Gradio merges loses nothing.
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
                gr.Info("The answer was empty: the model ended it at once. Ask again, or in other words.")
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
        """Everything on the page from a conversation; `text` goes into the text box."""
        places = conversation.answers()
        answer = conversation.turns[places[-1]].answer if places else None
        trace = traces.get(answer.trace_id, self.owner) if answer else None
        routing = nothing("Click an answer, and its routing is computed again." if places else "")
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
        """Whether there are two sides, and what the base's says. A comparison that was made stays in view."""
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
        note = f"answer {number + 1}{' of the base' * on_base_side}{' · recomputed' * recomputed}"
        last, adapted = len(places) - 1, bool(answer.adapter)
        shown = routing_message(
            answer.trace_id, trace, len(trace), number, last, picked=not compared, note=note, adapted=adapted
        )
        stats = {"base_stats" if on_base_side else "stats": statistics(answer)}
        return Shown(stored=talk.to_json(conversation) if recomputed else None, routing=shown, **stats)

    def _compare(self, answer: Answer) -> None:
        """Has the base route the tokens of an adapter's answer, for the panel to show what is otherwise."""
        trace = traces.get(answer.trace_id, self.owner)
        if trace is None or traces.base(answer.trace_id) is not None:
            return
        if answer.model_id != self.engine.status().model_id:
            raise StudioError(_why_lost(answer, self.engine.status().model_id))
        base = self.engine.replay(answer.token_ids, answer.prompt_tokens)
        try:
            flips(base, trace, "expert")
        except ValueError as error:  # of an imported file that names the wrong model
            raise StudioError("The routing of this answer is not of this model. Ask again to compare it.") from error
        traces.compare(answer.trace_id, base)

    def _trace(self, answer: Answer) -> tuple[RoutingTrace | None, bool]:
        """The trace of an answer, and whether it had to be computed again; None where that is impossible."""
        trace, model_id = traces.get(answer.trace_id, self.owner), self.engine.status().model_id
        if trace is not None or not answer.token_ids or answer.model_id != model_id:
            return trace, False
        if answer.adapter and answer.adapter not in [adapter for _, adapter in self._offered()]:
            return None, False
        return self.engine.replay(answer.token_ids, answer.prompt_tokens, adapter=answer.adapter or None), True


def _kept(asked: Asked, shown: int) -> str | None:
    """What the browser's storage gets after so many drafts."""
    return talk.to_json(asked.answered()) if asked.own.text and shown % STORE_EVERY == 0 else None


def _why_lost(answer: Answer, model_id: str | None) -> str:
    if not answer.token_ids:
        return "The routing of this answer was not kept: the conversation is too long. Ask again to see it."
    if answer.model_id != model_id:
        wrote = answer.model_id or "another model"
        return f"This answer was written by {wrote}, not by {model_id}. Load that model first."
    return (
        f"This answer was written by the adapter {answer.adapter_title!r}, which is not there any more, so its routing "
        "can't be computed again. Ask again with another adapter."
    )
