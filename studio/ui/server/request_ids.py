"""Request ids, which the page shows and the log contains when something unexpected fails.

demo.launch(app_kwargs={"middleware": [Middleware(RequestIds), ...]})      # the outermost middleware
number = current()                                                         # inside a handler
"""

from __future__ import annotations

import logging
import secrets
from itertools import count

from gradio.context import LocalContext
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from studio.ui.server.refusal import refusal

logger = logging.getLogger(__name__)
KEY, HEADER = "studio.request_id", "X-Request-ID"
TOLD = {403, 408, 413, 507}
"""Statuses to log; rate limits and missing logins are not logged."""
_numbers = count(secrets.randbits(32))


class RequestIds:
    """Give each request an id, and answer 500 if its route fails; the traceback goes only to the log."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        number = scope[KEY] = _new()
        begun = False

        async def numbered(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                MutableHeaders(scope=message)[HEADER] = number
                if message["status"] in TOLD:
                    logger.warning("request %s was refused (%d): %s", number, message["status"], _what(scope))
            await send(message)

        try:
            await self.app(scope, receive, numbered)
        except ClientDisconnect:
            logger.debug("request %s: the client disconnected", number)
        except Exception:
            logger.exception("request %s failed: %s", number, _what(scope))
            if begun:
                raise  # the server closes the connection, so that a partial answer isn't taken for a complete one
            await refusal(scope, 500, sentence(number))(scope, receive, numbered)


def current() -> str:
    """Return the id of the current request, or a new id outside a request."""
    request = LocalContext.request.get(None)
    # Gradio wraps the requests of queued handlers.
    scope = getattr(getattr(request, "request", request), "scope", None) or {}
    return scope.get(KEY) or _new()


def sentence(number: str) -> str:
    return f"Something went wrong (error {number}). The server log has the details under this number."


def _what(scope: Scope) -> str:
    """Return method and path for a log line, in which a path can't begin a line of its own."""
    return f"{scope['method'][:20]} {scope['path'][:200]!r}"


def _new() -> str:
    # Counted, not random: reading random bytes releases the GIL, and getting it back takes milliseconds while a model
    # decodes.
    return f"{next(_numbers) % 2**32:08x}"
