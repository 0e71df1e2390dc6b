"""Whose a request is: the middleware finds it out once, and everything that is private asks for it.

    demo.launch(app_kwargs={"middleware": [Middleware(Identity, secret=secret(home()))]})     # several people
    demo.launch(app_kwargs={"middleware": [Middleware(Identity)]})                            # one person
    runs = store.list(owner_of(request))                       # of a gr.Request or a Starlette request

One person is the owner "" and sees everything. Of several, each sees only their own: who is logged in is "user:NAME",
who is signed in on a Space "hf:NAME", and everybody else "anon:ID", a random id that the browser keeps in a signed
cookie.
"""

from __future__ import annotations

import hmac
import logging
import re
import secrets
import time
import uuid
from collections.abc import Callable
from copy import copy
from hashlib import sha256
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
from studio.ui.server.visitors import user_of

if TYPE_CHECKING:
    import gradio as gr

logger = logging.getLogger(__name__)
SECRET_BYTES = 32
DAY_S = 24 * 3600
KEPT_DAYS = 365
"""How long a browser that does not come back stays known."""
RENEWED_DAYS = 30


def owner_of(request: gr.Request | Request) -> str:
    """Raises AttributeError: no middleware has seen the request, so that nobody is taken for the one who sees all."""
    return request.state.owner


class Owned:
    """Handlers that see what is one owner's; at first the empty one's, which is everything."""

    owner = ""

    def of(self, request: gr.Request) -> Self:
        """The same for whose request it is."""
        same = copy(self)
        same.owner = owner_of(request)
        return same


def serves_several(exposure: Exposure) -> bool:
    """Whether people who are strangers to each other may use a studio that is reached so.

    Raises:
        StudioError: `$STUDIO_DEMO` is neither 0 nor 1.
    """
    return exposure.auth is not None or exposure.public or not exposure.local or demo.limits() is not None


def secret(home: Path) -> bytes:
    """The key of the cookies' signatures, made by whoever asks first: <home>/secret, which only its owner may read.

    Raises:
        StudioError: it can't be read or made, or is damaged.
    """
    file = home / "secret"
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = local(home) / "secret.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            if not file.exists():
                atomic_write(file, secrets.token_bytes(SECRET_BYTES), mode=0o600)
        key = file.read_bytes()
    except OSError as error:
        raise StudioError(f"{file} can't be read and written ({error.strerror}). Check its permissions.") from error
    if len(key) != SECRET_BYTES:
        raise StudioError(f"{file} is damaged. Delete it; visitors without a login then begin anew.")
    return key


class Identity:
    """Writes into every request whose it is. Plain ASGI, so streams pass.

    Args:
        secret: what cookies are signed with; None where one person uses the studio.
        move: gives what is one owner's to another.
    """

    def __init__(
        self, app: ASGIApp, secret: bytes | None = None, move: Callable[[str, str], None] = lambda before, after: None
    ) -> None:
        self.app = app
        self.move = move
        self.visitors = None if secret is None else Visitors(secret)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        owner, cookie = "", ""
        if self.visitors is not None:
            owner = _logged_in(scope)
            if not owner and (owner := sign_in.owner_by(scope)):
                cookie = await self._move_in(scope, owner, self.visitors)
            if not owner:
                owner, cookie = self.visitors.recognise(_cookies(scope), scope["scheme"] == "https")
        scope.setdefault("state", {})["owner"] = owner

        async def send_with_cookie(message: Message) -> None:
            # Never with what a cache may give to others, such as a script.
            if cookie and message["type"] == "http.response.start" and (scope["method"] == "POST" or _is_page(message)):
                headers = MutableHeaders(scope=message)
                headers.append("Set-Cookie", cookie)
                headers["Cache-Control"] = "no-store"
            await send(message)

        await self.app(scope, receive, send_with_cookie)

    async def _move_in(self, scope: Scope, owner: str, visitors: Visitors) -> str:
        """The cookie with which a browser forgets who it was, once that is the account's: with the page, which every
        sign-in ends with."""
        before = visitors.known(_cookies(scope)) if (scope.get("method"), scope["path"]) == ("GET", "/") else ""
        if not before:
            return ""
        try:
            await anyio.to_thread.run_sync(self.move, before, owner)
        except StudioError as error:
            logger.warning("what somebody made before signing in can't be moved yet: %s", error)
            return ""
        return visitors.forgotten()


class Visitors:
    """Browsers without a login, known again by a cookie that nobody else can make."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        # Of two studios on one host, which share its cookies, neither replaces the other's.
        self.name = f"jetmoe-studio-{self._mac('name')[:8]}"

    def recognise(self, cookies: dict[str, str], https: bool = False) -> tuple[str, str]:
        """Who it is, and the cookie to set; an empty one where that of the browser is fine."""
        visitor, age_s = self._read(cookies.get(self.name, ""))
        if visitor and age_s < RENEWED_DAYS * DAY_S:
            return f"anon:{visitor}", ""
        visitor = visitor or uuid.uuid4().hex
        return f"anon:{visitor}", self._cookie(self.sign(visitor), KEPT_DAYS * DAY_S, https)

    def known(self, cookies: dict[str, str]) -> str:
        """Whom the browser's cookie says, if it has a good one."""
        visitor, _ = self._read(cookies.get(self.name, ""))
        return f"anon:{visitor}" if visitor else ""

    def forgotten(self) -> str:
        """A cookie that replaces the browser's and is gone at once."""
        return self._cookie("", 0, https=True)

    def sign(self, visitor: str, now: float | None = None) -> str:
        """The value of a visitor's cookie that is made now."""
        text = f"{visitor}.{int(time.time() if now is None else now)}"
        return f"{text}.{self._mac(text)}"

    def _cookie(self, value: str, age_s: int, https: bool) -> str:
        # A Space is shown in a frame of another site.
        site = "SameSite=None; Secure; Partitioned" if demo.space_id() else "SameSite=Lax" + "; Secure" * https
        return f"{self.name}={value}; Path=/; Max-Age={age_s}; HttpOnly; {site}"

    def _read(self, value: str) -> tuple[str, float]:
        """The id, and the age of the cookie in seconds; no id where it is forged or too old."""
        if not re.fullmatch(r"[0-9a-f]{32}\.[0-9]{1,12}\.[0-9a-f]{64}", value):
            return "", 0.0
        text, mac = value.rsplit(".", 1)
        visitor, made = text.split(".")
        age_s = time.time() - int(made)
        is_good = hmac.compare_digest(mac, self._mac(text)) and age_s < KEPT_DAYS * DAY_S
        return (visitor, age_s) if is_good else ("", 0.0)

    def _mac(self, text: str) -> str:
        return hmac.new(self._secret, f"visitor {text}".encode(), sha256).hexdigest()


def _logged_in(scope: Scope) -> str:
    """By the login of Gradio's `auth`, which tells names to its listeners alone, not to downloads and functions."""
    name = user_of(scope) if hasattr(scope.get("app"), "tokens") else None
    return f"user:{name}" if name else ""


def _is_page(message: Message) -> bool:
    return MutableHeaders(scope=message).get("content-type", "").startswith("text/html")


def _cookies(scope: Scope) -> dict[str, str]:
    try:
        return HTTPConnection(scope).cookies
    except CookieError:
        return {}
