"""Gradio's queue with a share for everybody: limits for each visitor, and sessions that only their owner can use.

blocks._queue = FairQueue.of(blocks)
blocks._queue.claims.refuses("a1b2c3", owner)       # True if the session belongs to somebody else
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.queueing import Event, Queue
from starlette.exceptions import HTTPException
from starlette.types import Scope

from studio.backend.hosting import demo
from studio.ui.server.cached_files import CachedFiles, named_in, owner_in
from studio.ui.server.endpoints import NO_ENDPOINT, is_function
from studio.ui.server.limits import BODY_BYTES, OTHER_BYTES, visitor_of

OWN_EVENTS = 12
"""Events of a known visitor that wait or run."""
ADDRESS_EVENTS, SPACE_ADDRESS_EVENTS = 20, 28
"""The same for an address, less than the queue holds. On a Space, visitors may seem to share an address."""
LISTEN_S = 15.0
"""Seconds after which an event is dropped if nobody listens to its session."""
SESSIONS = 20_000
FOREIGN = "This session belongs to another visitor. Reload the page."
FOREIGN_FILE = "The uploaded file is gone, or it belongs to another visitor. Upload it again."
TOO_LARGE = "The request is too large: at most {} KiB can be sent at once without a conversation or a long text."
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
    files: CachedFiles
    listeners: Counter[str]

    @classmethod
    def of(cls, blocks: gr.Blocks) -> FairQueue:
        """Return a queue with the settings of the one that `Blocks.queue` has made."""
        made = blocks._queue
        fair = cls(made.live_updates, made.max_thread_count, made.update_intervals, made.max_size, blocks)
        fair.default_concurrency_limit = made.default_concurrency_limit
        fair.claims, fair.files, fair.listeners = Claims(), CachedFiles(), Counter()
        return fair

    async def push(self, body: Any, request: Any, username: str | None) -> Any:
        scope, session = request.scope, body.session_hash
        if session and self.claims.refuses(session, claimant(scope)):
            return False, FOREIGN, "error"
        if self.files.refuses_any(named_in([body.data, body.event_data]), owner_in(scope)):
            return False, FOREIGN_FILE, "error"
        if body.fn_index is not None and not is_function(self.blocks, body.fn_index):
            raise HTTPException(404, NO_ENDPOINT)
        if problem := self.too_large(body.fn_index, scope):
            return False, problem, "error"
        await self._drop_unheard()
        problem = self._problem(scope, known_owner(scope))
        answer = (False, problem, "queue_full") if problem else await super().push(body, request, username)
        if not answer[0]:
            self.files.release(named_in(body.data), owner_in(scope))
        elif owner := claimant(scope):
            self.claims.claim(session or str(answer[1]), owner)
            self.claims.claim(str(answer[1]), owner)
        self._take_turns()
        return answer

    async def process_events(self, events: list[Event], *args: Any, **options: Any) -> None:
        """Process events like Gradio, and delete their uploaded files at the end."""
        named = _files_of(events)
        try:
            await super().process_events(events, *args, **options)
        finally:
            self._release(named)

    async def clean_events(self, *, session_hash: str | None = None, event_id: str | None = None) -> None:
        """Drop the events of a session, with their uploaded files."""
        waiting = [each for queue in self.event_queue_per_concurrency_id.values() for each in queue.queue]
        named = _files_of([each for each in waiting if session_hash == each.session_hash or event_id == each._id])
        await super().clean_events(session_hash=session_hash, event_id=event_id)
        self._release(named)

    def _release(self, named: list[tuple[str, list[str]]]) -> None:
        for owner, paths in named:
            self.files.release(paths, owner)

    def too_large(self, fn_index: Any, scope: Scope) -> str:
        """Return a sentence if an event has more bytes than its inputs need."""
        fn = self.blocks.fns.get(fn_index) if isinstance(fn_index, int) else None
        is_long = fn is None or fn.api_visibility == "public" or any(map(may_be_long, fn.inputs))
        is_too_large = not is_long and scope.get("state", {}).get(BODY_BYTES, 0) > OTHER_BYTES
        return TOO_LARGE.format(OTHER_BYTES // 1024) if is_too_large else ""

    @contextmanager
    def listening(self, session: str) -> Iterator[None]:
        self.listeners[session] += 1
        try:
            yield
        finally:
            self.listeners[session] -= 1
            if not self.listeners[session]:
                del self.listeners[session]

    def _take_turns(self) -> None:
        """Order the waiting events: the first one of every address, then the second ones, and so on."""
        running = [each for jobs in self.active_jobs for each in jobs or ()]
        for queue in self.event_queue_per_concurrency_id.values():
            turns, order = Counter(visitor_of(each.request.scope) for each in running), []
            for event in queue.queue:
                visitor = visitor_of(event.request.scope)
                order.append((turns[visitor], event))
                turns[visitor] += 1
            queue.queue[:] = [event for _, event in sorted(order, key=itemgetter(0))]

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


def long(component: Component) -> Any:
    """Mark a component whose value may be a conversation or a long text, and return it."""
    component.may_be_long = True  # type: ignore[attr-defined]
    return component


def may_be_long(component: Any) -> bool:
    return getattr(component, "may_be_long", False)


def _files_of(events: list[Event]) -> list[tuple[str, list[str]]]:
    """Return the owner of each event, and the paths of its files."""
    return [(owner_in(each.request.scope), [*named_in(each.data.data)]) for each in events if each.data]


def known_owner(scope: Scope) -> str:
    """Return the owner of a request if later requests have the same one, else an empty string.

    A client without cookies is another visitor in each request.
    """
    state = scope.get("state", {})
    return state.get("owner", "") if state.get("is_known") else ""


def claimant(scope: Scope) -> str:
    """Return the owner who can claim sessions, or an empty string.

    Gradio's MCP server passes cookies on when it sends an event, and not when it listens. A client that only claims to
    be that server gains nothing: its events count as its own, and others may read them.
    """
    return "" if (b"x-gradio-user", b"mcp") in scope.get("headers", ()) else known_owner(scope)
