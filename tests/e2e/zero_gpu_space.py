"""`app.py` as on a ZeroGPU Space, for machines without a card: `spaces` itself, but the card is not touched.

python -m tests.e2e.zero_gpu_space --port 7860          # with the variables of `ZeroGpu.environment`

What is left out is what needs a card or its driver: the first tensor on it, and moving those that were played to be.
"""

from __future__ import annotations

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import httpx

from tests.builders.gate import Gate

STEP = "/step"
"""Requested before each decoding step, so that a test can hold it; not part of the real service."""


class ZeroGpu:
    """The service that lends GPUs, as far as `spaces` asks it; `asked` is (path, parameters) of every request."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.lends = True
        self.steps = Gate()
        asked, service = self.asked, self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                address = urlsplit(self.path)
                if address.path == STEP:
                    service.steps.wait()
                    self.send_response(204)
                    self.end_headers()
                    return
                asked.append((address.path, {name: values[0] for name, values in parse_qs(address.query).items()}))
                lent = {"idle": False, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": str(len(asked))}
                refused = address.path == "/schedule" and not service.lends
                body = json.dumps(lent).encode()
                self.send_response(503 if refused else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        address = f"http://127.0.0.1:{self._server.server_address[1]}"
        return {"SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": address}

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _leave_the_card_out() -> None:
    import bitsandbytes  # noqa: F401 - before it is told of a card that its libraries are not there for
    import torch

    if torch.version.cuda is None:  # a build for CPUs, which lacks what is going to be played
        torch.version.cuda = "12.8"
        torch._C._cuda_init = lambda: None
        torch.cuda._is_in_bad_fork = bool  # which is False, and can be pickled
    import spaces.zero.torch

    spaces.zero.torch.init = lambda uuid: None
    spaces.zero.torch.move = lambda callback=None: None


def _ask_before_each_step() -> None:
    from studio.backend.chat.decoder import Decoder

    step = Decoder.step

    def asking(decoder: Decoder, token_id: int):
        httpx.post(os.environ["SPACES_ZERO_DEVICE_API_URL"] + STEP, timeout=60)
        return step(decoder, token_id)

    Decoder.step = asking  # type: ignore[method-assign]


if __name__ == "__main__":
    import sys

    _leave_the_card_out()
    _ask_before_each_step()
    import app
    from studio.backend.system import process
    from studio.backend.training import zero_gpu_slices

    zero_gpu_slices.SLICE_S = 4.0  # so that the run of a toy takes several
    process.NICENESS = 0  # as in `eager_app`
    sys.exit(app.main())
