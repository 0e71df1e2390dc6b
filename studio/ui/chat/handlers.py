"""Handlers of the Chat tab: plain values in, plain values out. The components are in `tab.py`.

    handlers = ChatHandlers(engine)
    for shown in handlers.send("Hello", stored="", system="", session="s", settings=[...]): ...

The browser stores the conversations. It sends the open one (`stored`, JSON); handlers check it and return the new one
under the same id, so the server keeps only traces and the answers in progress.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.backend.adapters.find import sample_prompts
from studio.backend.adapters.uploads import Choice, delete_upload
from studio.errors import StudioError
from studio.ui.chat import conversation as talk
from studio.ui.chat.answering import Draft, write_answer
from studio.ui.chat.conversation import Conversation, Reply, Turn
from studio.ui.chat.conversation_file import export_conversation, import_conversations
from studio.ui.chat.examples import EXAMPLES
from studio.ui.chat.messages import chat_messages, edited_text, heading, pending_message, statistics, with_options
from studio.ui.chat.routing_handlers import RoutingHandlers
from studio.ui.chat.sampling_form import read_sampling
from studio.ui.chat.shown import Shown, busy, idle
from studio.ui.common.picked_adapter import Picked, fitting, read_picked
from studio.ui.common.running import Run, Running
from studio.ui.common.trace_store import traces
from studio.ui.routing.routing_panel import message as routing_message
from studio.ui.routing.routing_panel import nothing

if TYPE_CHECKING:
    from studio.backend.chat.engine import Engine, Sampling

STORE_EVERY = 20
"""Drafts between two writes to browser storage, about two seconds."""
EMPTY = "The answer is empty: the model stopped at once. Try again, or rephrase the question."
NOTHING_TO_ADD = "The model adds nothing: for it, the answer is complete."


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
    start: str = ""
    """Beginning of the answer, which is continued."""
    branches: bool = False
    """Whether the beginning is a new one, which is kept even if the model adds nothing."""
    others: tuple[Turn, ...] = ()
    """The other variants of the answer, and its place among them."""
    number: int | None = None
    own: Draft = field(default_factory=Draft)
    base: Draft = field(default_factory=lambda: Draft(waiting="Waiting for the adapter's answer …"))

    def answered(self) -> Conversation:
        """Return the conversation with the text so far."""
        return talk.append_assistant(
            self.conversation, self.own.text, self.own.answer, self._base_reply(), self.others, self.number
        )

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


class ChatHandlers(RoutingHandlers):
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
        asked = self._asked(before, talk.retry(before), settings, picked)
        turn = before.turns[-1]
        variants = turn.variants() if turn.role == "assistant" else ()
        yield from self._answer(before, replace(asked, others=variants), session)

    def continue_answer(self, stored: str, system: str, session: str, settings: list[Any]) -> Iterator[Shown]:
        """Continue the last answer with the adapter that wrote it."""
        before = self._opened(stored, system)
        turn = talk.last_answer(before)
        picked = Picked(turn.answer.adapter if turn.answer else "").kept()
        asked = self._asked(before, talk.retry(before), settings, picked)
        base = asked.base if turn.base is None else Draft(turn.base.content, "", turn.base.answer)
        asked = replace(asked, start=turn.content, own=Draft(turn.content, ""), base=base)
        yield from self._answer(before, replace(asked, others=turn.others, number=turn.number), session)

    def branch(
        self, number: int, token: int, token_id: int, stored: str, system: str, session: str, settings: list[Any]
    ) -> Iterator[Shown]:
        """Write another variant of an answer, with an alternative in the place of a token.

        Where other messages follow the answer, the variant begins a conversation of its own, so that nothing is lost.
        """
        whole = self._opened(stored, system)
        turn = self._turn(stored, number)[1]
        start = self._branch(turn.answer or talk.Answer(), token, token_id)
        before = talk.up_to(whole, whole.answers()[number])
        picked = Picked(turn.answer.adapter if turn.answer else "").kept()
        asked = self._asked(before, talk.retry(before), settings, picked)
        base = asked.base if turn.base is None else Draft(turn.base.content, "", turn.base.answer)
        asked = replace(asked, start=start, own=Draft(start, ""), base=base, others=turn.variants(), branches=True)
        yield from self._answer(before, asked, session)

    def switch(self, step: int, stored: str, session: str, picked: Any = None) -> Shown:
        """Show the next variant of the last answer, or the one before."""
        self.running.check_idle(session)
        return self._restored(talk.switch(talk.from_json(stored), step), None, picked)

    def edit(
        self, index: int, text: str, stored: str, system: str, session: str, settings: list[Any], picked: Any = None
    ) -> Iterator[Shown]:
        """Answer an edited question again, or keep an edited answer as it is."""
        before = self._opened(stored, system)
        try:
            if 0 <= index < len(before.turns):
                text = edited_text(text, before.turns[index])
            if index in before.answers():
                self.running.check_idle(session)
                yield self._restored(talk.edit_answer(before, index, text), None, picked)
                return
            asked = self._asked(before, talk.edit(before, index, text), settings, picked)
        except StudioError:
            yield Shown(chat=with_options(before))  # undoes the edit that the page already shows
            raise
        yield from self._answer(before, asked, session)

    def undo(self, stored: str, session: str, picked: Any = None) -> Shown:
        self.running.check_idle(session)
        left, text = talk.undo(talk.from_json(stored))
        return self._restored(left, text, picked)

    def clear(self, session: str, picked: Any = None, raw: bool | None = None) -> Shown:
        """Start a new conversation. An answer in progress is stopped, and kept in its own conversation."""
        self.running.stop(session, discard=True)
        return self._restored(Conversation(raw=raw).identified(), "", picked)._replace(system=None)

    def choose_raw(self, stored: str, raw: Any) -> Shown:
        """Switch between chat and raw completion from the next message on."""
        return Shown(stored=talk.to_json(replace(talk.from_json(stored).identified(), raw=raw is True)))

    def prompt_text(self, text: str, stored: str, system: str, settings: list[Any]) -> str:
        """Return the prompt of the next message, or of the last answer if there is none, as the model gets it."""
        conversation = self._opened(stored, system)
        if text.strip():
            conversation = talk.append_user(conversation, text)
        elif conversation.answers():
            conversation = talk.retry(conversation)
        return self.engine.prompt_text(conversation.messages(), read_sampling(*settings))

    def stop(self, session: str) -> None:
        self.running.stop(session)

    def open(self, stored: str, session: str, picked: Any = None) -> Shown:
        """Show a stored conversation; an answer in progress is stopped, and kept in its own conversation.

        An unanswered question goes back into the text box, which is otherwise left as it is.
        """
        self.running.stop(session, discard=True)
        text = None
        try:
            conversation = talk.from_json(stored)
            if conversation.turns and conversation.turns[-1].role == "user":
                conversation, text = talk.undo(conversation)
        except StudioError as error:
            notice = f"The conversation stored in this browser can't be read, so it is not shown. {error}"
            return self._restored(Conversation().identified(), None, picked)._replace(notice=notice)
        return self._restored(conversation, text, picked)

    def take_over(self, earlier: str, picked: Any = None) -> Shown:
        """Show the conversation that an earlier version of the studio stored, for the browser to store it anew."""
        conversation = talk.from_json(earlier)
        if not conversation.turns:
            return Shown()
        return self._restored(conversation.identified(), None, picked)

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

    def examples(self, adapter: str) -> Sequence[str]:
        """Return the prompts that an empty conversation offers: those of the adapter's run, else the studio's."""
        try:
            return (sample_prompts(adapter, self.owner) if adapter else []) or EXAMPLES
        except StudioError:  # deleted meanwhile, which the next answer says
            return EXAMPLES

    def export_file(self, stored: str, session: str) -> str:
        self.running.check_idle(session)
        conversation = talk.from_json(stored)
        if not conversation.turns:
            raise StudioError("There is nothing to export yet. Send a message first.")
        return export_conversation(conversation, lambda answer: self._trace(answer)[0])

    def import_file(self, data: bytes, session: str, picked: Any = None) -> Shown:
        self.running.check_idle(session)
        imported = import_conversations(data, lambda trace: traces.open(trace, self.owner))
        conversations = [conversation.identified() for conversation in imported]
        shown = self._restored(conversations[0], None, picked)
        return shown if len(conversations) == 1 else shown._replace(stored=talk.several_to_json(conversations))

    def _opened(self, stored: str, system: str) -> Conversation:
        conversation = talk.from_json(stored).identified()
        system = talk.checked_text(system or "", "system prompt")
        return replace(conversation, system=system, raw=self._is_raw(conversation))

    def is_raw(self, stored: str) -> bool:
        """Return whether a stored conversation is a raw completion; one that can't be read gets the model's default."""
        try:
            return self._is_raw(talk.from_json(stored))
        except StudioError:
            return self._is_raw(Conversation())

    def _is_raw(self, conversation: Conversation) -> bool:
        has_template = self.engine.status().defaults.has_template
        return not has_template if conversation.raw is None else conversation.raw

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
            # Until there is text, a refresh brings back the answer that is continued or asked for again.
            kept = before if asked.others or asked.start else asked.conversation
            yield asked.sides()._replace(stored=talk.to_json(kept), box=box)
            try:
                for asked, shown in self._drafts(asked, run):  # noqa: B007, B020
                    yield shown
            except Exception:
                if not run.discarded:
                    yield self._ended(before, asked, sent)
                raise
            if not run.discarded:
                yield self._ended(before, asked, sent)
            elif asked.own.text != asked.start:  # the page shows another conversation by now
                yield Shown(stored=talk.to_json(asked.answered()))

    def _drafts(self, asked: Asked, run: Run) -> Iterator[tuple[Asked, Shown]]:
        """Generate the adapter's answer first, so that a conversation that is stopped early continues with it."""
        shown, number, sent_rows = 0, len(asked.conversation.answers()), [0, 0]
        for draft in write_answer(
            self.engine, asked.conversation, asked.sampling, run.cancel, asked.adapter, self.owner, asked.start
        ):
            asked = replace(asked, own=draft)
            if run.discarded:
                continue
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
            asked = replace(asked, base=draft)
            if run.discarded:
                continue
            shown += 1
            yield asked, asked.sides()._replace(stored=_kept(asked, shown))
        if not run.cancel.is_set():
            self._compare(asked.own.answer)

    def _ended(self, before: Conversation, asked: Asked, sent: str | None) -> Shown:
        if asked.own.text == asked.start and not asked.branches:
            if asked.own.answer.finish == "stop":
                gr.Info(NOTHING_TO_ADD if asked.start else EMPTY)
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
            chat=with_options(conversation),
            stored=talk.to_json(conversation),
            box=idle(text),
            routing=routing,
            stats=statistics(answer) if answer else "",
            system=conversation.system,
            raw=self._is_raw(conversation),
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
        return Shown(with_options(conversation)) if asked.base_messages is None else self._both(conversation)

    def _both(self, conversation: Conversation) -> Shown:
        base_side = conversation.base_side()
        places = conversation.answers()
        answer = base_side.turns[places[-1]].answer if places else None
        stats = statistics(answer) if answer else ""
        return Shown(with_options(conversation), base_chat=chat_messages(base_side), base_stats=stats)


def _kept(asked: Asked, shown: int) -> str | None:
    """Return the value for browser storage every `STORE_EVERY` drafts, otherwise None."""
    return talk.to_json(asked.answered()) if asked.own.text and shown % STORE_EVERY == 0 else None
