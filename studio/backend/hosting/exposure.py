"""Who can reach the page: the address that it listens on, whether a login is asked for, whose headers are believed.

    exposure = Exposure.from_environment(host="0.0.0.0", auth=Path("users.txt"))
    exposure.require_safe()

Every setting has a flag of `app.py` and a variable of the environment, and `doctor` reads the same variables.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from studio.backend.hosting.accounts import Accounts
from studio.errors import StudioError

HOST, PUBLIC, AUTH, PROXY = "GRADIO_SERVER_NAME", "STUDIO_PUBLIC", "STUDIO_AUTH", "STUDIO_PROXY"
"""Variables of the environment."""


@dataclass(frozen=True)
class Exposure:
    host: str = "127.0.0.1"
    """Address to listen on."""
    public: bool = False
    """Everybody who reaches the address may use the page, on purpose."""
    auth: Path | None = None
    """File of those who may log in."""
    proxy: bool = False
    """A proxy stands before the studio, and its forwarded headers are true."""
    space: bool = False
    """This is a Hugging Face Space, public by its nature and behind a proxy."""

    @classmethod
    def from_environment(
        cls, host: str | None = None, public: bool = False, auth: Path | None = None, proxy: bool = False
    ) -> Exposure:
        """What is given goes before what the environment says."""
        file = auth or (Path(os.environ[AUTH]) if os.environ.get(AUTH) else None)
        return cls(
            host=host or os.environ.get(HOST) or cls.host,
            public=public or _on(PUBLIC),
            auth=file.expanduser() if file else None,
            proxy=proxy or _on(PROXY),
            space=bool(os.environ.get("SPACE_ID")),
        )

    @property
    def local(self) -> bool:
        """Whether only this machine reaches the page; one that serves a proxy is meant for others."""
        return is_loopback(self.host) and not self.proxy and not self.space

    @property
    def forwarded(self) -> bool:
        """Whether headers that a proxy sets are believed."""
        return self.proxy or self.space

    def accounts(self) -> Accounts | None:
        return Accounts(self.auth) if self.auth else None

    def require_safe(self) -> None:
        """Raises StudioError where others reach the page without a login and nobody said so, or nobody could log in."""
        if self.auth:
            if not Accounts(self.auth).names():
                raise StudioError(
                    f"Nobody is in {self.auth}. Add somebody: `python -m studio user add NAME --file {self.auth}`."
                )
        elif not (self.local or self.public or self.space):
            where = "behind a proxy" if is_loopback(self.host) else f"on {self.host}"
            raise StudioError(
                f"Everybody who reaches the page {where} could use it: give --auth FILE (made by `python -m studio "
                "user add NAME`) for a login, or --public if that is meant."
            )


def is_loopback(host: str) -> bool:
    """Whether an address, or `localhost`, is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _on(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "on")
