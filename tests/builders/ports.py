"""Ports that no other worker takes."""

from __future__ import annotations

import itertools
import os
import socket

# Below those that Linux gives to whoever asks for any (32768 on); a thousand for each worker. Tests of another checkout
# that run at the same time begin elsewhere.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_FIRST = 20_000 + 1000 * _WORKER
_PORTS = itertools.cycle([_FIRST + (os.getpid() + i) % 1000 for i in range(1000)])


def free_port() -> int:
    """A port of this worker's own that is free now, and is not given again soon."""
    for port in itertools.islice(_PORTS, 1000):
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:  # taken by another program
                continue
            return port
    raise RuntimeError(f"No port is free for the worker {_WORKER}.")
