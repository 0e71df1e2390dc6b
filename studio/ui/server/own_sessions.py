"""Gradio's own routes, for the visitor whom a session, an event or an uploaded file belongs to.

[Middleware(Identity, ...), Middleware(OwnSessions)]

Gradio answers everybody who knows a session's hash, an event's id or a file's path. Plain ASGI, so streams pass.
"""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from typing import Any
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from studio.ui.server.cached_files import named_in, owner_in
from studio.ui.server.endpoints import API, problem_of
from studio.ui.server.fair_queue import FOREIGN, FOREIGN_FILE, FairQueue, claimant, known_owner
from studio.ui.server.limits import UPLOAD
from studio.ui.server.refusal import refusal

# Paths that name a session or an event.
NAMED = re.compile(
    rf"{API}/(?:heartbeat/(?P<heartbeat>[^/]+)|call/(?:v2/)?[^/]+/(?P<event>[^/]+)|stream/(?P<stream>[^/]+)(?:/.*)?)/?"
)
# All of `file=PATH` and `file/PATH`.
FILE = f"{API}/file"
# Paths whose body names them, or the arguments of an endpoint. The queue checks `queue/join` and `call`.
BODIES = tuple(
    f"{API}/{name}" for name in ("cancel", "component_server", "run/", "api/", "call/v2/", "reset", "stream/")
)
# Routes that the page doesn't need. `token` would give the login's token, which the browser hides from scripts, to
# every script; the others write files that are never deleted, fetch from other servers, or wait without end.
CLOSED = tuple(
    f"{API}/{name}" for name in ("token", "deep_link", "process_recording", "proxy=", "vibe-", "undo-vibe-", "dev/")
)


class OwnSessions:
    """Answer 403 if a session, event or file belongs to another known visitor, and 404 if there is nothing to answer.

    The queue of the page must be a `FairQueue`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(API):
            await self.app(scope, receive, send)
            return
        path, queue = scope["path"], scope["app"].get_blocks()._queue
        values: dict[str, Any] | None = _query(scope)
        ids, files = _ids_of_path(scope), _file_of_path(path)
        if path.startswith(BODIES) and scope["method"] == "POST":
            body, receive = await _read(receive)
            values = _json(body, dict)
            ids, files = ids + _ids_in(values or {}), [*files, *named_in(values)]
        if problem := _problem(queue, scope, ids, files, values):
            await refusal(scope, *problem)(scope, receive, send)
            return
        with ExitStack() as stack:
            for each in ids:
                stack.enter_context(queue.listening(each))
            await self.app(scope, receive, self._claiming(queue, scope, ids, send) if path == UPLOAD else send)

    def _claiming(self, queue: FairQueue, scope: Scope, ids: list[str], send: Send) -> Send:
        """Pass an upload's answer on, which lists the paths of its files. `ids` names its progress."""
        answer = b""
        owner = known_owner(scope)
        for each in ids if owner else ():
            queue.claims.claim(each, owner)

        async def claiming(message: Message) -> None:
            nonlocal answer
            if message["type"] == "http.response.body":
                answer += message.get("body", b"")
                if not message.get("more_body"):
                    for path in _json(answer, list) or []:
                        queue.files.claim(str(path), owner_in(scope))
            await send(message)

        return claiming


def _problem(
    queue: FairQueue, scope: Scope, ids: list[str], files: list[str], values: dict[str, Any] | None
) -> tuple[int, str] | None:
    """Return the status and the sentence of a refusal, if the request must be refused."""
    path, owner = scope["path"], claimant(scope)
    # Gradio's routes ignore a line feed at the end, and the patterns here don't.
    if path.startswith(CLOSED) or any(character < " " for character in path):
        return 404, "There is no such page."
    if values is None:  # a form, which the page doesn't send
        return 400, "The request is not a JSON object."
    if any(queue.claims.refuses(each, owner) for each in ids):
        return 403, FOREIGN
    if queue.files.refuses_any(files, owner_in(scope)):
        return 403, FOREIGN_FILE
    if sentence := queue.too_large(values.get("fn_index"), scope):
        return 413, sentence
    return problem_of(queue.blocks, scope["method"], path, values)


async def _read(receive: Receive) -> tuple[bytes, Receive]:
    """Read a short body, whose size `Bodies` limits; return it and a `receive` that returns it again."""
    messages: list[Message] = []
    while not messages or messages[-1].get("more_body"):
        messages.append(await receive())
    body = b"".join(message.get("body", b"") for message in messages)

    async def again() -> Message:
        return messages.pop(0) if messages else await receive()

    return body, again


def _ids_in(values: dict[str, Any]) -> list[str]:
    return [values[name] for name in ("session_hash", "event_id") if isinstance(values.get(name), str)]


def _ids_of_path(scope: Scope) -> list[str]:
    query, found = parse_qs(_query_string(scope)), NAMED.fullmatch(scope["path"])
    in_query = [each for name in ("session_hash", "upload_id") for each in query.get(name, [])]
    return in_query + [each for each in (found.groups() if found else ()) if each]


def _query(scope: Scope) -> dict[str, Any]:
    return {name: values[-1] for name, values in parse_qs(_query_string(scope)).items()}


def _query_string(scope: Scope) -> str:
    return scope.get("query_string", b"").decode("latin-1")


def _file_of_path(path: str) -> list[str]:
    return [path[len(FILE) + 1 :]] if path.startswith(FILE) else []


def _json(text: bytes, kind: type) -> Any:
    """Return the value of a JSON text, or None if it is of another kind."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, kind) else None
