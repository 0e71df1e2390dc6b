"""Handlers of the Chat tab that show the routing of an answer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from jetmoe.routing import RoutingTrace
from studio.analysis.flips import flips
from studio.backend.chat.alternatives import alternatives
from studio.errors import StudioError
from studio.ui.chat import conversation as talk
from studio.ui.chat.conversation import Answer, Conversation
from studio.ui.chat.messages import statistics
from studio.ui.chat.shown import Shown
from studio.ui.common.picked_adapter import offered
from studio.ui.common.trace_store import traces
from studio.ui.routing.routing_panel import can_branch, kept_message
from studio.ui.routing.routing_panel import message as routing_message
from studio.ui.server.identity import Owned

if TYPE_CHECKING:
    from studio.backend.chat.engine import Engine


class RoutingHandlers(Owned):
    """Handlers for one owner."""

    engine: Engine

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

    def keep_alternatives(self, stored: str, number: int, token: int) -> Shown:
        """Compute the alternatives to a token of answer `number` again, for the panel to fetch them."""
        answer = self._turn(stored, number)[1].answer or Answer()
        _check_token(answer, token)
        if traces.get(answer.trace_id, self.owner) is None or not self._can_replay(answer):
            raise StudioError(_why_lost(answer, self.engine.status().model_id))
        with self.engine.turn(answer.adapter or None) as turn:
            assert turn is not None  # never cancelled
            found = alternatives(turn.decoder, turn.tokenizer, answer.token_ids, token)
        traces.keep(answer.trace_id, token, found)
        return Shown(routing=kept_message(answer.trace_id, token))

    def _branch(self, answer: Answer, token: int, token_id: int) -> str:
        """Return the text of the answer up to a token, and an alternative in its place."""
        _check_token(answer, token)
        trace, _ = self._trace(answer)
        chosen = [each for each in traces.alternatives(answer.trace_id, token, self.owner) if each.token_id == token_id]
        if trace is None or not chosen or not can_branch(chosen[0]):
            raise StudioError("The answer can't branch here. Click the token again to see its alternatives.")
        return "".join(trace.texts[answer.prompt_tokens : token]) + chosen[0].text

    def show_message(self, stored: str, index: int, on_base_side: bool = False) -> Shown:
        """Show the routing of the answer at message `index`, or of the answer to that message."""
        places = talk.from_json(stored).answers()
        after = [number for number, place in enumerate(places) if place >= index]
        return self.show_routing(stored, after[0], on_base_side) if after else Shown()

    def _offered(self) -> list[tuple[str, str]]:
        return offered(self.engine.status().model_id, self.owner)

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
        trace = traces.get(answer.trace_id, self.owner)
        if trace is not None or not self._can_replay(answer):
            return trace, False
        return self.engine.replay(answer.token_ids, answer.prompt_tokens, adapter=answer.adapter or None), True

    def _can_replay(self, answer: Answer) -> bool:
        if not answer.token_ids or answer.model_id != self.engine.status().model_id:
            return False
        return not answer.adapter or answer.adapter in [adapter for _, adapter in self._offered()]


def _check_token(answer: Answer, token: int) -> None:
    if type(token) is not int or not answer.prompt_tokens <= token < len(answer.token_ids):
        raise StudioError("The answer has no such token. Reload the page.")


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
