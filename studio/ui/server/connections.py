"""Limits for connections, so that half-sent requests of one address can't lock out everybody else.

limit_connections(by_address=not exposure.forwarded)        # before the page is launched

uvicorn reads the protocol class when a server starts, and has no settings for this.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from typing import Any

from uvicorn.protocols.http import auto

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

HEADER_S = 20.0
"""Seconds for the headers of a request."""
ADDRESS_CONNECTIONS = 512
"""Of one address, which a class of a hundred pages may share; a browser opens six."""
FILES = 65_536
RESERVED_FILES = 200
"""File handles that connections leave for the list of runs, data and models."""
Protocol: Any = auto.AutoHTTPProtocol


class LimitedProtocol(Protocol):
    """uvicorn's protocol with limits. It runs on the server's event loop only."""

    by_address = True
    most = 1024
    open: Counter[str] = Counter()
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._address = self.client[0] if self.client and self.by_address else ""
        self.open[self._address] += 1
        is_full = self.open.total() > self.most
        if is_full or (self._address and self.open[self._address] > ADDRESS_CONNECTIONS):
            transport.abort()
        else:
            self._time_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._time_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.open[self._address] -= 1
        if not self.open[self._address]:
            del self.open[self._address]
        super().connection_lost(exc)

    def _time_headers(self) -> None:
        """Start the time while the headers of a request are incomplete, and stop it once they have arrived."""
        is_waiting = self.cycle is None or self.cycle.response_complete
        if not is_waiting:
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEADER_S, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def limit_connections(by_address: bool) -> None:
    """Limit the connections of servers that start after this, and allow this process more open files.

    Args:
        by_address: limit those of one address too; not behind a proxy, whose address all of them have.
    """
    LimitedProtocol.most = max(64, _most_files() - RESERVED_FILES)
    LimitedProtocol.by_address = by_address
    auto.AutoHTTPProtocol = LimitedProtocol


def _most_files() -> int:
    """Return how many files this process may open, after raising that number as far as the system allows."""
    if resource is None:
        return FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    if soft < files:
        with suppress(ValueError, OSError):  # a container may forbid it
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
