"""Turn the engine's events into drafts of one answer for the page, at most ten times a second.

for draft in write_answer(engine, conversation, Sampling(), cancel):
    show(draft.text, traces.get(draft.answer.trace_id))
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from studio.backend.adapters.uploads import Choice
from studio.backend.chat.events import TokenEvent
from studio.ui.chat.conversation import Answer, Conversation
from studio.ui.common.trace_store import traces

if TYPE_CHECKING:
    from studio.backend.chat.engine import Engine, Sampling

INTERVAL_S = 0.1
SHARE = 0.2
"""Maximum share of the time spent on updates of the page. The model waits for them, and on busy cores they are slow."""


@dataclass(frozen=True)
class Draft:
    """An answer in progress; `waiting` is shown until there is text."""

    text: str = ""
    waiting: str = "Reading the message …"
    answer: Answer = field(default_factory=Answer)
    finished: bool = False

    def after(self, event: TokenEvent) -> Draft:
        """Return the draft with one more event, whose routing goes into the trace store."""
        if event.trace is not None:
            traces.append(self.answer.trace_id, event.trace)
        if event.alternatives:
            traces.keep(self.answer.trace_id, len(self.answer.token_ids), event.alternatives)
        if event.kind == "queued":
            return replace(self, waiting=_place(event.place))
        if event.kind == "notice":
            return replace(self, answer=replace(self.answer, notices=(*self.answer.notices, event.text)))
        return replace(self, text=self.text + event.text, waiting="", answer=self._measured(event))

    def _measured(self, event: TokenEvent) -> Answer:
        answer = replace(self.answer, finish=event.finish)
        if event.trace is not None:
            answer = replace(answer, token_ids=(*answer.token_ids, *event.trace.token_ids.tolist()))
        timing = event.timing
        if timing is None:
            return answer
        return replace(
            answer,
            prompt_tokens=timing.prompt_tokens,
            ttft_s=round(timing.ttft_s, 3),
            decode_tok_s=round(timing.decode_tok_s, 2),
            context_size=timing.context_size,
        )


def write_answer(
    engine: Engine,
    conversation: Conversation,
    sampling: Sampling,
    cancel: threading.Event,
    adapter: Choice | None = None,
    owner: str = "",
    start: str = "",
) -> Iterator[Draft]:
    """Yield drafts of the answer; the last one is finished. Closing the generator stops the engine.

    Args:
        adapter: adapter to use; None for the base model.
        owner: owner of the trace.
        start: beginning of the answer, which is continued.

    Raises:
        StudioError: the engine rejects the conversation or the adapter, or is not ready.
    """
    answer = Answer(model_id=engine.status().model_id or "", trace_id=traces.open(owner=owner))
    if adapter is not None:
        answer = replace(answer, adapter=adapter.id, adapter_title=adapter.title)
    draft, messages = Draft(start, answer=answer), conversation.messages(start)
    events = engine.generate(messages, sampling, cancel, adapter=adapter.id if adapter else None)
    due_at = 0.0
    try:
        for event in events:
            draft = draft.after(event)
            begun_at = time.monotonic()
            if event.kind != "token" or begun_at >= due_at:
                yield draft
                due_at = begun_at + max(INTERVAL_S, (time.monotonic() - begun_at) / SHARE)
        yield replace(draft, finished=True, waiting="")
    finally:
        events.close()  # type: ignore[attr-defined]


def _place(place: int) -> str:
    return f"{place} answer{'s' if place > 1 else ''} ahead of yours …"
