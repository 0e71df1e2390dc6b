"""What a Space finds around it: files without `.git` and tests, its own user and variables, a proxy that ends TLS, and
the page of the Hub that shows it in a frame.

    with surroundings(folder, model) as space:
        space.frame         # https://huggingface.co/spaces/me/studio, in a browser of `blocking_browser`
"""

from __future__ import annotations

import datetime
import io
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route

from studio.backend.runs.store import RunStore
from tests.builders.adapters import finished_run
from tests.builders.ports import free_port
from tests.builders.waiting import until

ROOT = Path(__file__).parents[3]
HUB, HOST, ID = "huggingface.co", "me-studio.hf.space", "me/studio"
USER = 1000
# `python app.py`, but runs have normal priority, as in `tests/e2e/eager_app.py`.
START = "import app; from studio.backend.system import process; process.NICENESS = 0; raise SystemExit(app.main())"
# Reads what root may read, because the interpreter may be in root's home, and writes as anybody else.
AS_USER = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--inh-caps=+dac_read_search",
           "--ambient-caps=+dac_read_search"]  # fmt: skip
# As on the Hub.
FRAME = f"""<!doctype html><title>{ID}</title><body style="margin: 0"><iframe src="https://{HOST}/"
style="width: 100vw; height: 100vh; border: 0" sandbox="allow-downloads allow-forms allow-modals allow-pointer-lock
allow-popups allow-popups-to-escape-sandbox allow-same-origin allow-scripts"></iframe>"""
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


def exported(folder: Path) -> Path:
    """Extract the files that docs/hosting.md uploads to a Space, with the changes that are not committed yet."""
    changed = subprocess.check_output(["git", "stash", "create"], cwd=ROOT, text=True).strip()
    packed = subprocess.check_output(["git", "archive", changed or "HEAD", ":!tests"], cwd=ROOT)
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder


@dataclass(frozen=True)
class Space:
    frame: str
    """Address of the Hub's page."""
    own: str
    """Address of the Space without a frame."""
    port: int
    """Of the proxy, on which browsers must look for both hosts."""
    log: Path
    home: Path
    """The studio's."""
    model: Path

    def trained(self, owner: str) -> str:
        """Add a run that has trained an adapter, and return its id."""
        run = finished_run(self.model, store=RunStore(self.home), name="pirate", owner=owner)
        if os.geteuid() == 0:
            for path in (run.folder, *run.folder.rglob("*")):
                os.chown(path, USER, USER)
        return run.id


@contextmanager
def surroundings(folder: Path, model: Path, **variables: str) -> Iterator[Space]:
    """Start `app.py` as a Space would.

    Args:
        model: a folder that the Space's user can't write.
        variables: of the Space.
    """
    files, home, data = exported(folder / "app"), folder / "user", folder / "user" / "studio"
    home.mkdir()
    is_root = os.geteuid() == 0
    if is_root:
        folder.chmod(0o755)
        os.chown(home, USER, USER)
    app, proxy, log = free_port(), free_port(), folder / "log.txt"
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(home), "STUDIO_HOME": str(data),
        "USER": "user", "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1",
        "SPACE_ID": ID, "SPACE_HOST": HOST, "SPACE_AUTHOR_NAME": "me", "SYSTEM": "spaces", "MEMORY": "16Gi",
        "CPU_CORES": "2", "GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SERVER_PORT": str(app),
        "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "STUDIO_MODEL": str(model), **variables,
    }  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*(AS_USER if is_root else []), sys.executable, "-c", START], cwd=files, env=environment, stdout=output,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        with _proxy(proxy, app, folder):
            until(lambda: _answers(app, process, log), 120)
            yield Space(f"https://{HUB}/spaces/{ID}", f"https://{HOST}/", proxy, log, data, model)
    finally:
        process.terminate()
        process.wait(30)


def _answers(port: int, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        return httpx.get(f"http://127.0.0.1:{port}/").status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def _proxy(port: int, app: int, folder: Path) -> Iterator[None]:
    routes = [Route("/{path:path}", _Front(app), methods=["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"])]
    certificate, key = _certificate(folder)
    server = uvicorn.Server(
        uvicorn.Config(
            Starlette(routes=routes),
            port=port,
            log_level="warning",
            lifespan="off",
            timeout_keep_alive=600,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started, 60)
    try:
        yield
    finally:
        server.should_exit = server.force_exit = True
        thread.join(30)


class _Front:
    """Answer for the Hub, and pass on what is for the Space with the headers that its proxies set."""

    def __init__(self, app: int) -> None:
        self.app = app
        self.client = httpx.AsyncClient(timeout=None)

    async def __call__(self, scope, receive, send) -> None:
        request = Request(scope, receive)
        is_hub = request.url.hostname == HUB
        response = HTMLResponse(FRAME) if is_hub else await self._passed_on(request)
        await response(scope, receive, send)

    async def _passed_on(self, request: Request) -> Response:
        kept = {name: value for name, value in request.headers.items() if not name.startswith("x-forwarded")}
        forwarded = {"X-Forwarded-For": "203.0.113.7, 10.20.30.40", "X-Forwarded-Proto": "https",
                     "X-Forwarded-Host": HOST}  # fmt: skip
        url = f"http://127.0.0.1:{self.app}{request.url.path}?{request.url.query}"
        asked = self.client.build_request(
            request.method, url, headers=kept | forwarded, content=await request.body() or None
        )
        answer = await self.client.send(asked, stream=True)

        async def body() -> AsyncIterator[bytes]:
            try:
                async for piece in answer.aiter_raw():
                    yield piece
            finally:
                await answer.aclose()

        response = StreamingResponse(body(), answer.status_code)
        response.raw_headers = [
            (name, value) for name, value in answer.headers.raw if name.decode().lower() not in HOP_BY_HOP
        ]
        return response


def _certificate(folder: Path) -> tuple[Path, Path]:
    """Write a self-signed certificate, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST)])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName(HOST), x509.DNSName(HUB)])
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    files = folder / "proxy.crt", folder / "proxy.key"
    files[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files
