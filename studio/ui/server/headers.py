"""Security headers that keep the page from loading from or leaking to other hosts; plain ASGI, so streams pass."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Gradio runs inline scripts and compiles templates, hence 'unsafe-inline' and 'unsafe-eval'. Fonts from other hosts,
# which Gradio requests on a Space, are blocked because they would reveal the visit.
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    "frame-ancestors 'self'"
)
SPACE_POLICY = (
    CONTENT_POLICY.replace("connect-src 'self'", "connect-src 'self' https://huggingface.co")
    + " https://huggingface.co https://*.hf.space"
)
ANYWHERE_POLICY = SPACE_POLICY.partition("; frame-ancestors")[0]
# A year. Not for other names of the host, which may have no https.
STRICT_TRANSPORT = "max-age=31536000"
UNSECURE = "access-token-unsecure-"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": CONTENT_POLICY,
}


class SafeHeaders:
    """Add security headers to every response, and correct the cookies and redirects of Gradio's login.

    Args:
        space: allow requests to the Hub, which Gradio needs for the Space's status.
        anywhere: allow frames of all websites.
    """

    def __init__(self, app: ASGIApp, space: bool = False, anywhere: bool = False) -> None:
        self.app = app
        policy = ANYWHERE_POLICY if anywhere else SPACE_POLICY if space else CONTENT_POLICY
        self.headers = HEADERS | {"Content-Security-Policy": policy}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers.setdefault(name, value)
                _correct(scope, message, headers)
            await send(message)

        await self.app(scope, receive, send_with_headers)


def _correct(scope: Scope, message: Message, headers: MutableHeaders) -> None:
    """Keep Gradio's login cookies to this site and to https if that is used; redirect a logout to this page only."""
    is_secure = scope.get("scheme") == "https"  # as a trusted proxy says
    if is_secure:
        headers["Strict-Transport-Security"] = STRICT_TRANSPORT
    if scope["path"].rstrip("/") == "/logout" and "location" in headers:
        headers["Location"] = f"{scope.get('root_path', '')}/"
    message["headers"] = [
        (name, _same_site(value) if name == b"set-cookie" else value)
        for name, value in message["headers"]
        if not (is_secure and name == b"set-cookie" and value.startswith(UNSECURE.encode()))
    ]


def _same_site(cookie: bytes) -> bytes:
    """Return a login cookie that other websites can't make the browser send."""
    return cookie.replace(b"SameSite=none", b"SameSite=lax") if cookie.startswith(b"access-token-") else cookie
