"""Password check for Gradio's login.

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
"""Passwords checked at the same time; each check takes a core for a quarter of a second, and 32 MiB."""


def login_of(accounts: Accounts) -> Callable[[str, str], Awaitable[bool]]:
    """Return a function that checks a name and password in a thread."""
    limiter: list[anyio.CapacityLimiter] = []

    async def login(name: str, password: str) -> bool:
        if not limiter:
            limiter.append(anyio.CapacityLimiter(AT_ONCE))  # must be created in the event loop that uses it
        try:
            fits = await anyio.to_thread.run_sync(accounts.check, name, password, limiter=limiter[0])
        except StudioError as error:
            logger.warning("all logins are refused: %s", error)
            return False
        if not fits:
            logger.warning("login as %r failed", name[:64])
        return fits

    return login
