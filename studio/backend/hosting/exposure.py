"""Who can reach the page: the listening address, the login and trusted proxy headers.

    exposure = Exposure.from_environment(host="0.0.0.0", auth=Path("users.txt"))
    exposure.require_safe()

Every setting has a flag of `app.py` and an environment variable; `doctor` reads the same variables.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from studio.backend.hosting.accounts import Accounts
from studio.backend.system import plan
from studio.errors import StudioError

HOST, PUBLIC, AUTH, PROXY = "GRADIO_SERVER_NAME", "STUDIO_PUBLIC", "STUDIO_AUTH", "STUDIO_PROXY"
"""Environment variables."""


@dataclass(frozen=True)
class Exposure:
    host: str = "127.0.0.1"
    """Address to listen on."""
    public: bool = False
    """Whether the page may be used without a login by everybody who reaches the address."""
    auth: Path | None = None
    """The accounts file."""
    proxy: bool = False
    """Whether the studio is behind a proxy whose forwarded headers can be trusted."""
    space: bool = False
    """Whether this is a Hugging Face Space, which is public and behind a proxy."""

    @classmethod
    def from_environment(
        cls, host: str | None = None, public: bool = False, auth: Path | None = None, proxy: bool = False
    ) -> Exposure:
        """Read the settings from the environment; arguments take precedence."""
        file = auth or (Path(os.environ[AUTH]) if os.environ.get(AUTH) else None)
        return cls(
            host=host or os.environ.get(HOST) or cls.host,
            public=public or _on(PUBLIC),
            auth=file.expanduser() if file else None,
            proxy=proxy or _on(PROXY),
            space=plan.is_space(),
        )

    @property
    def local(self) -> bool:
        """Whether only this machine reaches the page; False behind a proxy."""
        return is_loopback(self.host) and not self.proxy and not self.space

    @property
    def forwarded(self) -> bool:
        """Whether the headers set by a proxy are trusted."""
        return self.proxy or self.space

    def accounts(self) -> Accounts | None:
        return Accounts(self.auth) if self.auth else None

    def require_safe(self) -> None:
        """Raise StudioError if others reach the page without a login and `public` is off, or if nobody can log in."""
        if self.auth:
            if not Accounts(self.auth).names():
                raise StudioError(
                    f"{self.auth} has no users. Add one: `python -m studio user add NAME --file {self.auth}`."
                )
        elif not (self.local or self.public or self.space):
            where = "behind a proxy" if is_loopback(self.host) else f"on {self.host}"
            raise StudioError(
                f"Everybody who reaches the page {where} could use it: set --auth FILE (written by `python -m studio "
                "user add NAME`) for a login, or --public if this is intended."
            )


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach the address, which may be `localhost`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _on(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "on")
