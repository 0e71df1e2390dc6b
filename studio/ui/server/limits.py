"""Rate and size limits, so that one visitor can't block the page for others.

    [Middleware(Rates), ..., Middleware(Bodies, folder=Path("/tmp/gradio"))]

Plain ASGI, so streams pass. Limits are per address, which many people may share: a classroom of a hundred pages that
poll once a second stays far below them.
"""

from __future__ import annotations

import ipaddress
import math
import re
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from studio.ui.server.json_nodes import NodeCount
from studio.ui.server.refusal import refusal

MIB = 2**20
UPLOAD_BYTES = 200 * MIB
"""Per upload; `Blocks.launch` limits each of its files to the same size."""
EVENT_BYTES = 8 * MIB
"""Per event with a conversation, for the longest one in four-byte characters. The queue limits events without one."""
OTHER_BYTES = 256 * 1024
"""Per request of any other kind."""
NODES = 50_000
"""Values in a JSON body. Each takes up to 200 bytes of memory, and a conversation of a thousand messages has 6,000."""
BURST_BYTES, SECOND_BYTES = 64 * MIB, 2 * MIB
"""Of all events of an address: at once, and per second."""
SHARE, DEMO_SHARE = 0.5, 0.125
"""The part of the room for uploads that an address can use in a day."""
DAY_S = 24 * 3600
FILES = 16
"""Per upload."""
FOLDER_BYTES = 4 * 1024 * MIB
FOLDER_FILES = 20_000
"""For all uploads, which Gradio deletes after a day. The number counts too, because small files cost space and time."""
GRACE_S, SLOWEST = 60.0, 16 * 1024
"""Seconds allowed for a body, plus one for every SLOWEST bytes that have arrived."""
VISITORS = 10_000
"""Number of visitors with counted requests; the least recent are dropped first."""
UPLOAD = "/gradio_api/upload"
EVENTS = ("/gradio_api/queue/join", "/gradio_api/call/", "/gradio_api/mcp", "/gradio_api/run/", "/gradio_api/api/")
DIRECT = ("/gradio_api/run/", "/gradio_api/api/", "/gradio_api/component_server")
"""Events that bypass the queue."""
AT_ONCE = 12
"""Of an address; the server has 40 threads for all."""
ADAPTER = re.compile(rb'filename="[^"\r\n]{0,255}\.(?:zip|safetensors)"', re.IGNORECASE)
HEADER_BYTES = 512
"""Of a part of an upload, which holds the file's name."""
LEFTOVER_S = 3600.0
"""Age after which an empty file in the upload folder is deleted: Gradio leaves one for each file that a page uses."""
BODY_BYTES = "body_bytes"
"""Size of a body that has arrived, in the request's state."""


@dataclass(frozen=True)
class Rate:
    per_second: float
    burst: int
    sentence: str = "Too many requests from your address. Wait a moment, then try again."


RATES = {
    # Pages poll about once a second, and more often when they open.
    "poll": Rate(250, 1000),
    # Requests that use the model, the disk or the network.
    "work": Rate(10, 30),
    # Successful logins are not counted.
    "login": Rate(0.1, 10, "Too many login attempts from your address. Wait a minute, then try again."),
}
SPACE_RATES = RATES | {"poll": Rate(1000, 4000), "work": Rate(40, 120)}
"""On a Space, whose proxies may have a public address, many visitors may seem to share one."""
# The first match counts; the page's own files are not limited.
KINDS = (
    (("/login",), "login"),
    (("/gradio_api/queue/join", "/gradio_api/call/", "/gradio_api/process_recording", "/gradio_api/mcp", UPLOAD),
     "work"),
    (("/exports/", "/labelled/"), "work"),
    (("/gradio_api/", "/watch/", "/config", "/monitoring"), "poll"),
)  # fmt: skip


class Buckets:
    """Token buckets per visitor and kind of request.

    Args:
        clock: returns monotonic time in seconds.
    """

    def __init__(self, visitors: int = VISITORS, clock: Callable[[], float] = time.monotonic) -> None:
        self.visitors = visitors
        self.clock = clock
        self._left: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._left)

    def take(self, visitor: str, kind: str, rate: Rate, tokens: float = 1.0) -> float:
        """Take tokens and return 0, or return the seconds until there are enough."""
        now = self.clock()
        left, at = self._left.pop((visitor, kind), (float(rate.burst), now))
        left = min(rate.burst, left + (now - at) * rate.per_second)
        enough = left >= tokens
        self._left[visitor, kind] = (left - tokens * enough, now)
        while len(self._left) > self.visitors:
            self._left.popitem(last=False)
        return 0.0 if enough else (tokens - left) / rate.per_second

    def give_back(self, visitor: str, kind: str) -> None:
        if found := self._left.get((visitor, kind)):
            self._left[visitor, kind] = (found[0] + 1, found[1])


class Rates:
    """Answer 429 when a visitor exceeds a rate."""

    def __init__(self, app: ASGIApp, rates: dict[str, Rate] | None = None, buckets: Buckets | None = None) -> None:
        self.app = app
        self.rates = rates or RATES
        self.buckets = buckets or Buckets()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = kind_of(scope["path"]) if scope["type"] == "http" else None
        if kind is None:
            await self.app(scope, receive, send)
            return
        rate, visitor = self.rates[kind], visitor_of(scope)
        wait = self.buckets.take(visitor, kind, rate)
        if wait:
            answer = refusal(scope, 429, rate.sentence, {"Retry-After": str(math.ceil(wait))})
            await answer(scope, receive, send)
            return

        async def watched(message: Message) -> None:
            if kind == "login" and message["type"] == "http.response.start" and message["status"] < 400:
                self.buckets.give_back(visitor, kind)
            await send(message)

        await self.app(scope, receive, watched)


def kind_of(path: str) -> str | None:
    return next((kind for starts, kind in KINDS if path.startswith(starts)), None)


def visitor_of(scope: Scope) -> str:
    """Return the client's address; for IPv6 only the /64 prefix, because the client chooses the rest."""
    host = (scope.get("client") or ("",))[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(address)


class Turns:
    """Run only some direct events of an address at once, because they share the server's threads; others wait.

    Events of the queue have limits of their own.
    """

    def __init__(self, app: ASGIApp, most: int = AT_ONCE) -> None:
        self.app = app
        self.most = most
        self._turns: dict[str, anyio.Semaphore] = {}
        self._requests: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(DIRECT):
            await self.app(scope, receive, send)
            return
        visitor = visitor_of(scope)
        turns = self._turns.setdefault(visitor, anyio.Semaphore(self.most))
        self._requests[visitor] += 1
        try:
            async with turns:
                await self.app(scope, receive, send)
        finally:
            self._requests[visitor] -= 1
            if not self._requests[visitor]:
                del self._requests[visitor], self._turns[visitor]


class Bodies:
    """Limit request bodies while they arrive, whatever the Content-Length header claims.

    Bodies that arrive too slowly are refused too, because they keep a connection and a file open.

    Args:
        folder: Gradio's upload folder.
        data_bytes: most bytes of an upload without an adapter, if they are fewer.
        grace_s: seconds allowed for the first bytes.
        share: the part of the room for uploads that an address can use in a day; None for a single user.
    """

    def __init__(
        self, app: ASGIApp, folder: Path, upload_bytes: int = UPLOAD_BYTES, event_bytes: int = EVENT_BYTES,
        other_bytes: int = OTHER_BYTES, files: int = FILES, folder_bytes: int = FOLDER_BYTES,
        folder_files: int = FOLDER_FILES, data_bytes: int | None = None, grace_s: float = GRACE_S,
        share: float | None = None,
    ) -> None:  # fmt: skip
        self.app = app
        self.folder = folder
        # File names and separators come on top.
        self.upload_bytes = upload_bytes + 64 * 1024
        self.data_bytes = self.upload_bytes if data_bytes is None else data_bytes + 64 * 1024
        self.event_bytes, self.other_bytes = event_bytes, other_bytes
        self.files = files
        self.folder_bytes, self.folder_files = folder_bytes, folder_files
        self.grace_s = grace_s
        self.buckets, self.rates = Buckets(), {"events": Rate(SECOND_BYTES, BURST_BYTES)}
        if share is not None:
            self.rates["uploads"] = Rate(folder_bytes * share / DAY_S, int(folder_bytes * share))
        self._arriving = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        upload = scope["path"] == UPLOAD
        body = _Body(self._limit(scope["path"]), receive, send, scope, self.grace_s)
        if upload:
            used, files = await anyio.to_thread.run_sync(_contents, self.folder)
            if used + self._arriving + body.announced > self.folder_bytes or files >= self.folder_files:
                body.problem = (507, "The server has no room for more uploads. Try again tomorrow.")
            body.separator = _separator(Headers(scope=scope).get("content-type", ""))
            body.most_parts, body.data_limit = self.files, self.data_bytes
        body.on_arrival = partial(self._count, body, "uploads" if upload else "events")
        try:
            await body.through(self.app)
        finally:
            self._arriving -= body.arrived if upload else 0

    def _limit(self, path: str) -> int:
        if path == UPLOAD:
            return self.upload_bytes
        return self.event_bytes if path.startswith(EVENTS) else self.other_bytes

    def _count(self, body: _Body, kind: str, size: int) -> None:
        """Count bytes that have arrived: of all uploads, and of each address."""
        self._arriving += size if kind == "uploads" else 0
        if kind not in self.rates:
            return
        if wait := self.buckets.take(visitor_of(body.scope), kind, self.rates[kind], size):
            when = "tomorrow" if kind == "uploads" else f"in {math.ceil(wait)} seconds"
            body.problem = (429, f"Your address has sent too much data. Try again {when}.")


class _NoMore(MultiPartException):
    """Stop reading a body. Gradio deletes its partial files only for this type of exception."""


class _Body:
    """The body of one request as it passes through."""

    def __init__(self, limit: int, receive: Receive, send: Send, scope: Scope, grace_s: float) -> None:
        self.limit = limit
        self.begun_at, self.grace_s = time.monotonic(), grace_s
        self.receive, self.send, self.scope = receive, send, scope
        announced = Headers(scope=scope).get("content-length", "")
        self.announced = int(announced) if announced.isdecimal() and len(announced) < 20 else 0
        self.arrived = 0
        self.separator, self.most_parts, self._parts, self._seam = b"", 0, 0, b""
        self.data_limit, self._has_adapter, self._header = limit, False, b""
        self.on_arrival: Callable[[int], None] = lambda size: None
        self.count = NodeCount()
        self.problem: tuple[int, str] | None = None
        self._begun = self._complete = False

    async def through(self, app: ASGIApp) -> None:
        if self.announced > self.limit:
            self.problem = _too_large(self.limit)
        if self.problem is None:
            with suppress(_NoMore):
                await app(self.scope, self._receive, self._send)
        # A route may have caught the exception and answered; `_send` dropped that answer.
        if self.problem is not None and not self._begun:
            await refusal(self.scope, *self.problem, {"Connection": "close"})(self.scope, self.receive, self.send)

    async def _receive(self) -> Message:
        if self.problem is not None:
            raise _NoMore(self.problem[1])
        message = await self._next()
        if message["type"] == "http.disconnect" and self.separator and not self._complete:
            raise _NoMore("The client disconnected.")
        self._complete = not message.get("more_body", False)
        data = message.get("body", b"")
        self.arrived += len(data)
        self.on_arrival(len(data))
        self.scope.setdefault("state", {})[BODY_BYTES] = self.arrived
        self._find_adapter(data)
        if self.arrived > self.limit:
            self.problem = _too_large(self.limit)
        elif self.separator and not self._has_adapter and self.arrived > self.data_limit:
            self.problem = _too_large(self.data_limit)
        elif self.separator and self._count_parts(data) > self.most_parts:
            self.problem = (413, f"At most {self.most_parts} files can be uploaded at once. Upload fewer files.")
        elif not self.separator and self.count.add(data) > NODES:
            self.problem = (413, f"The request has too many values: at most {NODES:,} can be sent at once.")
        if self.problem is not None:
            raise _NoMore(self.problem[1])
        return message

    async def _next(self) -> Message:
        if self._complete:  # only a disconnect can follow, at any time before the answer ends
            return await self.receive()
        spent = time.monotonic() - self.begun_at
        with anyio.move_on_after(self.grace_s + self.arrived / SLOWEST - spent):
            return await self.receive()
        self.problem = (408, "The request arrived too slowly. Try again with a better connection.")
        raise _NoMore(self.problem[1])

    async def _send(self, message: Message) -> None:
        if self.problem is not None and not self._begun:
            return
        self._begun = True
        await self.send(message)

    def _count_parts(self, data: bytes) -> int:
        """Count the parts so far; a separator may be split across two pieces."""
        text = self._seam + data
        self._parts += text.count(self.separator)
        self._seam = text[-(len(self.separator) - 1) :] if len(self.separator) > 1 else b""
        return self._parts - 1  # one separator precedes the first file, and one follows the last

    def _find_adapter(self, data: bytes) -> None:
        """Note whether one of the files is an adapter; its name may be split across two pieces."""
        if self.separator and not self._has_adapter:
            self._has_adapter = ADAPTER.search(self._header + data) is not None
            self._header = (self._header + data)[-HEADER_BYTES:]


def _too_large(limit: int) -> tuple[int, str]:
    most = f"{limit // MIB} MiB" if limit >= MIB else f"{limit // 1024} KiB"
    return 413, f"The request is too large: at most {most} can be sent at once."


def _separator(content_type: str) -> bytes:
    """Return the separator before each file, parsed as Gradio does."""
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    return b"--" + boundary if boundary else b""


def _contents(folder: Path) -> tuple[int, int]:
    """Return the total size and number of files below a folder; files may be deleted meanwhile.

    Empty files in the folder itself are deleted after an hour.
    """
    size = number = 0
    for file in folder.rglob("*"):
        with suppress(OSError):
            if file.is_file():
                found = file.stat()
                size, number = size + found.st_size, number + 1
                if file.parent == folder and not found.st_size and time.time() - found.st_mtime > LEFTOVER_S:
                    file.unlink()
    return size, number
