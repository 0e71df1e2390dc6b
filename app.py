"""Start the JetMoE Studio page on a laptop or a Space.

python app.py [--host 127.0.0.1] [--port 7860] [--model MODEL] [--open]
python app.py --host 0.0.0.0 --auth users.txt [--proxy]        # shared server; --public instead of --auth: no login
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

from studio.backend.system.plan import thread_limits  # isort: split

os.environ.update(thread_limits())

# Must be imported before torch: on a ZeroGPU Space it emulates CUDA until a GPU is attached.
from studio.backend.system import zero_gpu  # isort: split

from studio.backend.chat.engine import Engine
from studio.backend.chat.loading import growing_waits
from studio.backend.chat.zero_engine import ZeroEngine
from studio.backend.hosting.exposure import Exposure
from studio.backend.models.placement import first_model
from studio.backend.models.starter import ConsoleProgress
from studio.backend.training.queue import Jobs
from studio.errors import StudioError
from studio.ui.page.layout import build, launch_settings
from studio.ui.server import log_lines
from studio.ui.server.connections import limit_connections

PORT = 7860


def main(arguments: list[str] | None = None) -> int:
    """Serve until interrupted and return the exit code; 2 is a user error."""
    flags = _flags(arguments)
    exposure = Exposure.from_environment(flags.host, flags.public, flags.auth, flags.proxy)
    try:
        exposure.require_safe()
        log_lines.install()
        limit_connections(by_address=not exposure.forwarded)
        _require_port(exposure.host, flags.port)
        engine, jobs = ZeroEngine() if zero_gpu.ACTIVE else Engine(), Jobs()
        settings = launch_settings(engine, jobs, exposure)
        jobs.open()
        engine.start_loading(flags.model or first_model(), ConsoleProgress(), waits=growing_waits())
    except StudioError as error:
        print(error, file=sys.stderr)
        return 2
    page = build(engine, jobs)
    page.launch(server_name=exposure.host, server_port=flags.port, inbrowser=flags.open, **settings)
    return 0


def _require_port(host: str, port: int) -> None:
    """Raise StudioError if the port is in use, before a model is loaded."""
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise StudioError(
            f"Port {port} on {host} can't be opened ({error.strerror}). Use another port: `--port {port + 1}`."
        ) from error


def _flags(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Chat with mixture-of-experts models and inspect their routing.")
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1, this machine only)")
    parser.add_argument("--auth", type=Path, metavar="FILE", help="require a login; see `python -m studio user add`")
    parser.add_argument("--public", action="store_true", help="allow anyone who can reach the address, without a login")
    parser.add_argument("--proxy", action="store_true", help="trust the forwarded headers of a reverse proxy")
    port = int(os.environ.get("GRADIO_SERVER_PORT", PORT))
    parser.add_argument("--port", type=int, default=port, help="port to listen on")
    parser.add_argument("--model", help="model to load first (or $STUDIO_MODEL); see `python -m studio models`")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Not sys.exit: a background compilation can't be interrupted, and tearing it down aborts the process.
    os._exit(code)
