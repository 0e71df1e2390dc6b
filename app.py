"""JetMoE Studio's page, on a laptop and as a Space: reads flags, builds the studio, launches it.

python app.py [--host 127.0.0.1] [--port 7860] [--model MODEL] [--open]
python app.py --host 0.0.0.0 --auth users.txt [--proxy]        # for others too; --public instead of a login
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

# Before everything that imports torch: on a ZeroGPU Space it plays a GPU that is lent later.
from studio.backend.system import zero_gpu  # isort: split

from studio.backend.chat.engine import Engine
from studio.backend.chat.zero_engine import ZeroEngine
from studio.backend.hosting.exposure import Exposure
from studio.backend.models.placement import first_model
from studio.backend.models.starter import ConsoleProgress
from studio.backend.training.queue import Jobs
from studio.errors import StudioError
from studio.ui.page.layout import build, launch_settings

PORT = 7860


def main(arguments: list[str] | None = None) -> int:
    """Serves until interrupted; returns the exit code: 2 where the person can fix it."""
    flags = _flags(arguments)
    exposure = Exposure.from_environment(flags.host, flags.public, flags.auth, flags.proxy)
    try:
        exposure.require_safe()
        _require_port(exposure.host, flags.port)
        engine, jobs = ZeroEngine() if zero_gpu.ACTIVE else Engine(), Jobs()
        settings = launch_settings(jobs, exposure)
        jobs.open()
        engine.start_loading(flags.model or first_model(), ConsoleProgress())
    except StudioError as error:
        print(error, file=sys.stderr)
        return 2
    page = build(engine, jobs)
    page.launch(server_name=exposure.host, server_port=flags.port, inbrowser=flags.open, **settings)
    return 0


def _require_port(host: str, port: int) -> None:
    """Before the model is loaded, so that nothing has to be taken down again."""
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise StudioError(
            f"Port {port} on {host} can't be opened ({error.strerror}): start with `--port {port + 1}`."
        ) from error


def _flags(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Chat with sparse mixture-of-experts models and watch their experts.")
    parser.add_argument("--host", help="address to listen on; this machine alone reaches the default, 127.0.0.1")
    parser.add_argument("--auth", type=Path, metavar="FILE", help="ask for a login; see `python -m studio user add`")
    parser.add_argument("--public", action="store_true", help="let everybody who reaches the address use the page")
    parser.add_argument("--proxy", action="store_true", help="believe the forwarded headers of a proxy before the page")
    port = int(os.environ.get("GRADIO_SERVER_PORT", PORT))
    parser.add_argument("--port", type=int, default=port, help="port to listen on")
    parser.add_argument("--model", help="the model to load first, see `python -m studio models`; $STUDIO_MODEL too")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Not sys.exit: a compilation in the background can't be interrupted, and tearing it down midway aborts the process.
    os._exit(code)
