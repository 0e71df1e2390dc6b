"""Gradio's own routes, for the visitor whom a session, an event or an uploaded file belongs to.

[Middleware(Identity, ...), Middleware(OwnSessions)]

Gradio answers everybody who knows a session's hash, an event's id or a file's path. Plain ASGI, so streams pass.
"""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from typing import Any
from urllib.parse import parse_qs, unquote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from studio.ui.server.fair_queue import FOREIGN, Claims, FairQueue, known_owner
from studio.ui.server.limits import UPLOAD
from studio.ui.server.refusal import refusal

API = "/gradio_api"
# Paths that name a session or an event.
NAMED = re.compile(
    rf"{API}/(?:heartbeat/(?P<heartbeat>[^/]+)|call/(?:v2/)?[^/]+/(?P<event>[^/]+)|stream/(?P<stream>[^/]+)(?:/.*)?)/?"
)
FILE = re.compile(rf"{API}/file[=/](.+)")
# Paths whose body names them. `queue/join` and `call` are checked by the queue.
BODIES = (f"{API}/cancel", f"{API}/component_server", f"{API}/run/", f"{API}/api/", f"{API}/reset")
# It would give the login's token, which the browser hides from scripts, to every script.
TOKEN = f"{API}/token"


class OwnSessions:
    """Answer 403 if a session, event or file belongs to another known visitor."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.files = Claims()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(API):
            await self.app(scope, receive, send)
            return
        if scope["path"].rstrip("/") == TOKEN:
            await refusal(scope, 404, "There is no such page.")(scope, receive, send)
            return
        queue, path, owner = scope["app"].get_blocks()._queue, scope["path"], known_owner(scope)
        if path.startswith(BODIES) and scope["method"] == "POST":
            body, receive = await _read(receive)
            ids = _ids_of_body(body)
        else:
            ids = _ids_of_path(scope)
        file = FILE.fullmatch(path)
        if self._is_foreign(queue, ids, owner) or (file and self.files.refuses(unquote(file[1]), owner)):
            await refusal(scope, 403, FOREIGN)(scope, receive, send)
            return
        with ExitStack() as stack:
            if isinstance(queue, FairQueue):
                for each in ids:
                    stack.enter_context(queue.listening(each))
            await self.app(scope, receive, self._claiming(send, owner) if path == UPLOAD and owner else send)

    def _is_foreign(self, queue: Any, ids: list[str], owner: str) -> bool:
        return isinstance(queue, FairQueue) and any(queue.claims.refuses(each, owner) for each in ids)

    def _claiming(self, send: Send, owner: str) -> Send:
        """Pass an upload's answer on, which lists the paths of its files."""
        answer = b""

        async def claiming(message: Message) -> None:
            nonlocal answer
            if message["type"] == "http.response.body":
                answer += message.get("body", b"")
                if not message.get("more_body"):
                    for path in _json(answer, list):
                        self.files.claim(str(path), owner)
            await send(message)

        return claiming


async def _read(receive: Receive) -> tuple[bytes, Receive]:
    """Read a short body, whose size `Bodies` limits; return it and a `receive` that returns it again."""
    messages: list[Message] = []
    while not messages or messages[-1].get("more_body"):
        messages.append(await receive())
    body = b"".join(message.get("body", b"") for message in messages)

    async def again() -> Message:
        return messages.pop(0) if messages else await receive()

    return body, again


def _ids_of_body(body: bytes) -> list[str]:
    values = _json(body, dict)
    return [values[name] for name in ("session_hash", "event_id") if isinstance(values.get(name), str)]


def _ids_of_path(scope: Scope) -> list[str]:
    query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
    found = NAMED.fullmatch(scope["path"])
    return query.get("session_hash", []) + [each for each in (found.groups() if found else ()) if each]


def _json(text: bytes, kind: type) -> Any:
    """Return the value of a JSON text; an empty one if it is of another kind, which Gradio refuses itself."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return kind()
    return value if isinstance(value, kind) else kind()
