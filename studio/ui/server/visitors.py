"""Client addresses behind a proxy, cross-origin requests and logins.

    [Middleware(Forwarded, exposure=exposure), Middleware(SameOrigin, ...), Middleware(RequireLogin, accounts=accounts)]

Plain ASGI, so streams pass. Gradio's own checks are not enough: custom routes and some of Gradio's need no login, and
every website gets an answer unless the page's host is this machine.
"""

from __future__ import annotations

import ipaddress
import logging
import os
from http.cookies import CookieError
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from studio.backend.hosting.accounts import Accounts
from studio.backend.hosting.exposure import Exposure, is_loopback
from studio.errors import StudioError
from studio.ui.server.refusal import refusal

# Otherwise uvicorn trusts forwarded headers from every local process; `Forwarded` reads them instead.
os.environ["FORWARDED_ALLOW_IPS"] = ""
logger = logging.getLogger(__name__)
FORWARDED = (b"x-forwarded-", b"forwarded", b"x-real-ip")
# Paths that the login page needs.
OPEN = {
    "/", "/login", "/logout", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json", "/gradio_api/theme.css",
    "/gradio_api/startup-events", "/gradio_api/login_check", "/gradio_api/user",
}  # fmt: skip
OPEN_FOLDERS = ("/assets/", "/static/", "/svelte/", "/pwa_icon")


class Forwarded:
    """Set the client's address and scheme from the headers of a trusted proxy; without one, drop these headers."""

    def __init__(self, app: ASGIApp, exposure: Exposure) -> None:
        self.app = app
        self.exposure = exposure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if not self.exposure.forwarded:
                scope["headers"] = [each for each in scope["headers"] if not each[0].lower().startswith(FORWARDED)]
            else:
                if address := _client(headers.getlist("x-forwarded-for"), skip_private=self.exposure.space):
                    scope["client"] = (address, 0)
                # The nearest proxy adds the last value.
                scheme = ",".join(headers.getlist("x-forwarded-proto")).rpartition(",")[2].strip().lower()
                scope["scheme"] = scheme if scheme in ("http", "https") else scope["scheme"]
        await self.app(scope, receive, send)


def _client(lines: list[str], skip_private: bool) -> str | None:
    """Return the address seen by the nearest proxy, which is the last one; a client can forge those before it.

    Args:
        skip_private: skip private addresses, which belong to further proxies.
    """
    for text in reversed(",".join(lines).split(",")):
        try:
            address = ipaddress.ip_address(text.strip())
        except ValueError:
            return None
        if not (skip_private and address.is_private):
            return str(address)
    return None


class SameOrigin:
    """Refuse cross-origin requests and, on a local server, host names that could be rebound to this machine."""

    def __init__(self, app: ASGIApp, exposure: Exposure) -> None:
        self.app = app
        self.exposure = exposure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self._problem(Headers(scope=scope)) if scope["type"] == "http" else ""
        if problem:
            await refusal(scope, 403, problem)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _problem(self, headers: Headers) -> str:
        host = _host(headers.get("host", ""))
        if self.exposure.local and not _of_this_machine(host):
            return "This studio can only be opened at its own address. Behind a proxy, start it with --proxy."
        if is_foreign(headers):
            return "Only the studio's own page may send this request. Behind a proxy, start the studio with --proxy."
        return ""


def is_foreign(headers: Headers) -> bool:
    """Return whether another website made the browser send the request."""
    origin = headers.get("origin")
    own = (_host(headers.get("host", "")), _host(headers.get("x-forwarded-host", "")))
    return origin is not None and _origin_host(origin) not in own


def _host(text: str) -> str:
    return text.split(",")[0].strip().lower().removesuffix(":80").removesuffix(":443")


def _origin_host(origin: str) -> str | None:
    """Return the host of an origin; None for files, sandboxed frames and invalid origins."""
    try:
        return _host(urlsplit(origin).netloc) or None
    except ValueError:
        return None


def _of_this_machine(host: str) -> bool:
    """Return whether the host is a loopback name or an IP address, which DNS can't point elsewhere."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return is_loopback(name) or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


class RequireLogin:
    """Require a login for everything except the login page itself.

    Removing a user or changing their password ends their sessions at once.
    """

    def __init__(self, app: ASGIApp, accounts: Accounts) -> None:
        self.app = app
        self.accounts = accounts
        self._stamps: dict[str, str] = {}
        """Stamp of the password at login, by Gradio's session token."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400:
                self._stamp(scope)
            await send(message)

        known = self._known(scope)
        if known or _is_open(scope["path"]):
            await self.app(scope, receive, stamped if scope["path"].rstrip("/") == "/login" else send)
        else:
            await refusal(scope, 401, "You are not logged in. Log in on the studio's page first.")(scope, receive, send)

    def _known(self, scope: Scope) -> bool:
        """Return whether the login is valid. Remove an invalid one, so that Gradio shows the login page again."""
        token, tokens = _token(scope), scope["app"].tokens
        user = tokens.get(token)
        if user is None:
            return False
        try:
            stamp = self.accounts.stamp(user)
        except StudioError as error:
            logger.warning("all logins are refused: %s", error)
            return False
        if stamp is None or stamp != self._stamps.get(token):
            del tokens[token]
            self._stamps.pop(token, None)
            return False
        return True

    def _stamp(self, scope: Scope) -> None:
        """Store the password stamps of new logins."""
        tokens = scope["app"].tokens
        for token in tokens.keys() - self._stamps.keys():
            self._stamps[token] = self.accounts.stamp(tokens[token]) or ""
        for token in self._stamps.keys() - tokens.keys():  # logged out
            del self._stamps[token]


def _is_open(path: str) -> bool:
    return (path.rstrip("/") or "/") in OPEN or path.startswith(OPEN_FOLDERS)


def user_of(scope: Scope) -> str | None:
    """Return the name of the logged-in user from Gradio's cookies."""
    return scope["app"].tokens.get(_token(scope))


def _token(scope: Scope) -> str:
    app: Any = scope["app"]
    try:
        cookies = Request(scope).cookies
    except CookieError:
        return ""
    return cookies.get(f"access-token-{app.cookie_id}") or cookies.get(f"access-token-unsecure-{app.cookie_id}") or ""
