"""Who asks, and from which page: addresses behind a proxy, requests that other websites cause, and logins.

    [Middleware(Forwarded, exposure=exposure), Middleware(SameOrigin, ...), Middleware(RequireLogin, accounts=accounts)]

Plain ASGI, so streams pass. Gradio alone asks no login of routes that are not its own and of some that are, and answers
every website where the page's host is not this machine.
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

# The server under Gradio would believe forwarded headers of everybody on this machine; `Forwarded` reads them itself.
os.environ["FORWARDED_ALLOW_IPS"] = ""
logger = logging.getLogger(__name__)
FORWARDED = (b"x-forwarded-", b"forwarded", b"x-real-ip")
# What the login page itself is made of.
OPEN = {
    "/", "/login", "/logout", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json", "/gradio_api/theme.css",
    "/gradio_api/startup-events", "/gradio_api/login_check", "/gradio_api/user",
}  # fmt: skip
OPEN_FOLDERS = ("/assets/", "/static/", "/svelte/", "/pwa_icon")


class Forwarded:
    """The true address of a visitor, and whether they came by https, where a proxy is known to stand before the page;
    else its headers are dropped."""

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
                # What the nearest proxy says is the last.
                scheme = ",".join(headers.getlist("x-forwarded-proto")).rpartition(",")[2].strip().lower()
                scope["scheme"] = scheme if scheme in ("http", "https") else scope["scheme"]
        await self.app(scope, receive, send)


def _client(lines: list[str], skip_private: bool) -> str | None:
    """The address that the nearest proxy saw, which is the last; whatever stands before it, a visitor may have made up.

    Args:
        skip_private: there may be several proxies, all of which have private addresses.
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
    """Refuses what other websites make a browser send, and on this machine names that others point to it."""

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
            return "This studio answers to its own address alone. Behind a proxy, start it with --proxy."
        if is_foreign(headers):
            return "Only the studio's own page may ask this. Behind a proxy, start the studio with --proxy."
        return ""


def is_foreign(headers: Headers) -> bool:
    """Whether a page of another website made the browser send it."""
    origin = headers.get("origin")
    own = (_host(headers.get("host", "")), _host(headers.get("x-forwarded-host", "")))
    return origin is not None and _origin_host(origin) not in own


def _host(text: str) -> str:
    return text.split(",")[0].strip().lower().removesuffix(":80").removesuffix(":443")


def _origin_host(origin: str) -> str | None:
    """None is no host: that of a file, a sandbox or nonsense."""
    try:
        return _host(urlsplit(origin).netloc) or None
    except ValueError:
        return None


def _of_this_machine(host: str) -> bool:
    """By a name that no one else gives out, or by a number, which isn't looked up."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return is_loopback(name) or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


class RequireLogin:
    """Answers those alone who are logged in, but for what the login page is made of. Who is removed is out at once, and
    so is everybody who logged in with a password that was changed since."""

    def __init__(self, app: ASGIApp, accounts: Accounts) -> None:
        self.app = app
        self.accounts = accounts
        self._stamps: dict[str, str] = {}
        """By Gradio's token of a login, the password's at that time."""

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
            await refusal(scope, 401, "Log in on the studio's page first.")(scope, receive, send)

    def _known(self, scope: Scope) -> bool:
        """Forgets a login that counts no more, so that Gradio shows the login page again."""
        token, tokens = _token(scope), scope["app"].tokens
        user = tokens.get(token)
        if user is None:
            return False
        try:
            stamp = self.accounts.stamp(user)
        except StudioError as error:
            logger.warning("nobody is let in: %s", error)
            return False
        if stamp is None or stamp != self._stamps.get(token):
            del tokens[token]
            self._stamps.pop(token, None)
            return False
        return True

    def _stamp(self, scope: Scope) -> None:
        """Every login that just succeeded."""
        tokens = scope["app"].tokens
        for token in tokens.keys() - self._stamps.keys():
            self._stamps[token] = self.accounts.stamp(tokens[token]) or ""
        for token in self._stamps.keys() - tokens.keys():  # logged out
            del self._stamps[token]


def _is_open(path: str) -> bool:
    return (path.rstrip("/") or "/") in OPEN or path.startswith(OPEN_FOLDERS)


def user_of(scope: Scope) -> str | None:
    """The name of who is logged in, by Gradio's cookies."""
    return scope["app"].tokens.get(_token(scope))


def _token(scope: Scope) -> str:
    app: Any = scope["app"]
    try:
        cookies = Request(scope).cookies
    except CookieError:
        return ""
    return cookies.get(f"access-token-{app.cookie_id}") or cookies.get(f"access-token-unsecure-{app.cookie_id}") or ""
