"""A short number for every request, which the page shows and the log says when something unexpected happened.

demo.launch(app_kwargs={"middleware": [Middleware(RequestIds), ...]})      # the outermost
number = current()                                                         # inside of a handler
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
"""What was refused and is worth a line in the log; who has to wait or to log in is not."""
_numbers = count(secrets.randbits(32))


class RequestIds:
    """Numbers requests, and answers those on which a route failed; a traceback is in the log alone."""

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
                    what = f"{scope['method']} {scope['path'][:200]!r}"
                    logger.warning("request %s was refused (%d): %s", number, message["status"], what)
            await send(message)

        try:
            await self.app(scope, receive, numbered)
        except ClientDisconnect:
            logger.debug("request %s: its sender has left", number)
        except Exception:
            logger.exception("request %s failed: %s %s", number, scope["method"], scope["path"])
            if begun:
                raise  # the server under this one cuts the connection, so that half an answer isn't taken for a whole
            await refusal(scope, 500, sentence(number))(scope, receive, numbered)


def current() -> str:
    """The number of the request whose handler this is; a new one outside of requests."""
    request = LocalContext.request.get(None)
    # Gradio wraps the requests of queued handlers.
    scope = getattr(getattr(request, "request", request), "scope", None) or {}
    return scope.get(KEY) or _new()


def sentence(number: str) -> str:
    return f"Something went wrong here ({number}). The log of the server says more under this number."


def _new() -> str:
    # Counted, not drawn: asking the system for chance gives the interpreter away, and getting it back takes
    # milliseconds beside a model that writes.
    return f"{next(_numbers) % 2**32:08x}"
