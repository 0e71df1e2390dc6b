"""Gradio's queue with a share for everybody: limits for each visitor, and sessions that only their owner can use.

blocks._queue = FairQueue.of(blocks)
blocks._queue.claims.refuses("a1b2c3", owner)       # True if the session belongs to somebody else
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
from gradio.queueing import Event, Queue
from starlette.types import Scope

from studio.backend.hosting import demo
from studio.ui.server.limits import visitor_of

OWN_EVENTS = 12
"""Events of a known visitor that wait or run."""
ADDRESS_EVENTS, SPACE_ADDRESS_EVENTS = 20, 28
"""The same for an address, less than the queue holds. On a Space, visitors may seem to share an address."""
LISTEN_S = 15.0
"""Seconds after which an event is dropped if nobody listens to its session."""
SESSIONS = 20_000
FOREIGN = "This session belongs to another visitor. Reload the page."
BUSY = "You have {} requests in the queue already. Wait until one is answered, or stop one."


class Claims:
    """The owner of each session and event: the known visitor who used its id first."""

    def __init__(self, sessions: int = SESSIONS) -> None:
        self.sessions = sessions
        self._owners: OrderedDict[str, str] = OrderedDict()

    def claim(self, session: str, owner: str) -> None:
        self._owners.setdefault(session, owner)
        self._owners.move_to_end(session)
        while len(self._owners) > self.sessions:
            self._owners.popitem(last=False)

    def refuses(self, session: str, owner: str) -> bool:
        return self._owners.get(session, owner) != owner


class FairQueue(Queue):
    """`gradio.queueing.Queue` with limits per visitor. The event loop is the only thread that uses it."""

    claims: Claims
    listeners: Counter[str]

    @classmethod
    def of(cls, blocks: gr.Blocks) -> FairQueue:
        """Return a queue with the settings of the one that `Blocks.queue` has made."""
        made = blocks._queue
        fair = cls(made.live_updates, made.max_thread_count, made.update_intervals, made.max_size, blocks)
        fair.default_concurrency_limit = made.default_concurrency_limit
        fair.claims, fair.listeners = Claims(), Counter()
        return fair

    async def push(self, body: Any, request: Any, username: str | None) -> Any:
        scope, session = request.scope, body.session_hash
        owner = known_owner(scope)
        if session and self.claims.refuses(session, owner):
            return False, FOREIGN, "error"
        await self._drop_unheard()
        if problem := self._problem(scope, owner):
            return False, problem, "queue_full"
        answer = await super().push(body, request, username)
        if answer[0] and owner:
            self.claims.claim(session or str(answer[1]), owner)
            self.claims.claim(str(answer[1]), owner)
        return answer

    @contextmanager
    def listening(self, session: str) -> Iterator[None]:
        self.listeners[session] += 1
        try:
            yield
        finally:
            self.listeners[session] -= 1
            if not self.listeners[session]:
                del self.listeners[session]

    def _problem(self, scope: Scope, owner: str) -> str:
        if not scope.get("state", {}).get("owner"):  # a single user
            return ""
        events = [event.request.scope for event in self._events()]
        own = sum(known_owner(each) == owner for each in events) if owner else 0
        here = sum(visitor_of(each) == visitor_of(scope) for each in events)
        if own >= OWN_EVENTS or here >= (SPACE_ADDRESS_EVENTS if demo.space_id() else ADDRESS_EVENTS):
            return BUSY.format(max(own, here))
        return ""

    async def _drop_unheard(self) -> None:
        """Drop events that nobody listens to: made-up sessions would fill the queue for everybody."""
        late = time.monotonic() - LISTEN_S
        for session in {event.session_hash for event in self._events() if event.enqueue_time < late}:
            if session not in self.listeners:
                await self.clean_events(session_hash=session)

    def _events(self) -> list[Event]:
        """Return the events that wait or run."""
        waiting = [event for each in self.event_queue_per_concurrency_id.values() for event in each.queue]
        running = [event for jobs in self.active_jobs for event in jobs or () if event.alive]
        return waiting + running


def known_owner(scope: Scope) -> str:
    """Return the owner of a request if later requests have the same one, else an empty string.

    A client without cookies is another visitor in each request. Gradio's MCP server passes cookies on when it sends an
    event, and not when it listens.
    """
    state = scope.get("state", {})
    if (b"x-gradio-user", b"mcp") in scope.get("headers", ()):
        return ""
    return state.get("owner", "") if state.get("is_known") else ""
