"""The login that Gradio asks for.

demo.launch(auth=login_of(Accounts(file)))
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import anyio
import anyio.to_thread

from studio.backend.hosting.accounts import Accounts
from studio.errors import StudioError

logger = logging.getLogger(__name__)
AT_ONCE = 2
"""Passwords that are checked at the same time: each takes a core for a quarter of a second, and 32 MiB."""


def login_of(accounts: Accounts) -> Callable[[str, str], Awaitable[bool]]:
    """Whether name and password fit; beside the server's loop, which goes on meanwhile."""
    limiter: list[anyio.CapacityLimiter] = []

    async def login(name: str, password: str) -> bool:
        if not limiter:
            limiter.append(anyio.CapacityLimiter(AT_ONCE))  # made in the loop that it belongs to
        try:
            fits = await anyio.to_thread.run_sync(accounts.check, name, password, limiter=limiter[0])
        except StudioError as error:
            logger.warning("nobody is let in: %s", error)
            return False
        if not fits:
            logger.warning("a login as %r failed", name[:64])
        return fits

    return login
