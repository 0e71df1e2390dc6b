"""The owner of a request: set once by the middleware, and checked wherever data is private.

    demo.launch(app_kwargs={"middleware": [Middleware(Identity, secret=secret(home()))]})     # several people
    demo.launch(app_kwargs={"middleware": [Middleware(Identity)]})                            # one person
    runs = store.list(owner_of(request))                       # a gr.Request or a Starlette request

A single user is the owner "" and sees everything. With several users, each sees only their own data. The owner is
"user:NAME" after a login, "hf:NAME" after a sign-in on a Space, and otherwise "anon:ID", with a random id that the
browser keeps in a signed cookie.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from copy import copy
from http.cookies import CookieError
from pathlib import Path
from typing import TYPE_CHECKING, Self

import anyio.to_thread
from filelock import FileLock
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from studio.backend.hosting import demo
from studio.backend.hosting.exposure import Exposure
from studio.backend.system.files import atomic_write
from studio.backend.system.home import local
from studio.errors import StudioError
from studio.ui.server import sign_in
from studio.ui.server.limits import visitor_of
from studio.ui.server.visitors import user_of

if TYPE_CHECKING:
    import gradio as gr
from studio.ui.server.cookies import Visitors

logger = logging.getLogger(__name__)
SECRET_BYTES = 32


def owner_of(request: gr.Request | Request) -> str:
    """Return the owner of a request. Raise AttributeError if the middleware set none, so that access fails closed."""
    return request.state.owner


class Owned:
    """Handlers restricted to one owner's data; the initial owner "" sees everything."""

    owner = ""
    address = ""
    """Of the visitor."""

    def of(self, request: gr.Request) -> Self:
        """Return a copy for the owner of this request."""
        same = copy(self)
        same.owner = owner_of(request)
        same.address = visitor_of({"client": request.client}) if same.owner else ""
        return same


def serves_several(exposure: Exposure) -> bool:
    """Return whether several users may share a studio with this exposure.

    Raises:
        StudioError: `$STUDIO_DEMO` is neither 0 nor 1.
    """
    return exposure.auth is not None or exposure.public or not exposure.local or demo.limits() is not None


def secret(home: Path) -> bytes:
    """Return the key that signs cookies. Create <home>/secret on first use, readable only by its owner.

    Raises:
        StudioError: the file is damaged, or can't be read or created.
    """
    file = home / "secret"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = local(home) / "secret.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            if not file.exists():
                atomic_write(file, secrets.token_bytes(SECRET_BYTES), mode=0o600)
        key = file.read_bytes()
    except OSError as error:
        raise StudioError(f"{file} can't be read or written ({error.strerror}). Check its permissions.") from error
    if len(key) != SECRET_BYTES:
        raise StudioError(f"{file} is damaged. Delete it; visitors without a login then start over.")
    return key


class Identity:
    """Store the owner in every request. Plain ASGI, so streams pass.

    Args:
        secret: key that signs cookies; None for a single user.
        merge: transfers everything from one owner to another.
    """

    def __init__(
        self, app: ASGIApp, secret: bytes | None = None, merge: Callable[[str, str], None] = lambda before, after: None
    ) -> None:
        self.app = app
        self.merge = merge
        self.visitors = None if secret is None else Visitors(secret)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        owner, cookies, is_known = "", list[str](), True
        if self.visitors is not None:
            owner = _logged_in(scope)
            if not owner and (owner := sign_in.owner_by(scope)):
                cookies = await self._merge_visitor(scope, owner, self.visitors)
            if not owner:
                is_known = bool(self.visitors.known(_cookies(scope)))
                owner, cookie = self.visitors.recognise(_cookies(scope), scope["scheme"] == "https")
                cookies = [cookie] if cookie else []
        scope.setdefault("state", {}).update(owner=owner, is_known=is_known)

        async def send_with_cookie(message: Message) -> None:
            # Never on cacheable responses such as scripts, which a cache may send to others.
            if (
                cookies
                and message["type"] == "http.response.start"
                and (scope["method"] == "POST" or _is_page(message))
            ):
                headers = MutableHeaders(scope=message)
                for cookie in cookies:
                    headers.append("Set-Cookie", cookie)
                headers["Cache-Control"] = "no-store"
            await send(message)

        await self.app(scope, receive, send_with_cookie)

    async def _merge_visitor(self, scope: Scope, owner: str, visitors: Visitors) -> list[str]:
        """Transfer the visitor's data to the account, and return cookies that delete the visitor's cookies.

        This happens when the page itself is requested, which is the last step of every sign-in.
        """
        before = visitors.known(_cookies(scope)) if (scope.get("method"), scope["path"]) == ("GET", "/") else ""
        if not before:
            return []
        try:
            await anyio.to_thread.run_sync(self.merge, before, owner)
        except StudioError as error:
            logger.warning("a visitor's data can't be transferred to their account yet: %s", error)
            return []
        return visitors.forgotten()


def _logged_in(scope: Scope) -> str:
    """Read Gradio's login from its tokens, because Gradio passes the name only to events, not to other routes."""
    name = user_of(scope) if hasattr(scope.get("app"), "tokens") else None
    return f"user:{name}" if name else ""


def _is_page(message: Message) -> bool:
    return MutableHeaders(scope=message).get("content-type", "").startswith("text/html")


def _cookies(scope: Scope) -> dict[str, str]:
    try:
        return HTTPConnection(scope).cookies
    except CookieError:
        return {}
