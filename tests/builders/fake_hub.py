"""A server on this machine that speaks as much of the hub's protocol as a push needs.

with serving_hub() as hub:               # HF_ENDPOINT is hub.url
    ...
hub.files, hub.visibility, hub.requests  # what it got
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from tests.builders.http_server import running

REPO = "me/pirate"
LARGE = (".safetensors", ".png")


@contextmanager
def serving_hub(repo: str = REPO, kind: str = "models") -> Iterator[FakeHub]:
    hub = FakeHub(repo, kind)
    with running(hub.server):
        yield hub


@contextmanager
def hub_here(patch: pytest.MonkeyPatch, repo: str = REPO) -> Iterator[FakeHub]:
    """For pushes of this process, as HF_ENDPOINT is for one that begins."""
    with serving_hub(repo) as hub:
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its storage for large files is not spoken here
        yield hub


class FakeHub:
    """Repositories in memory, one of which takes files, and every request that was made."""

    def __init__(self, repo: str = REPO, kind: str = "models") -> None:
        self.repo, self.kind = repo, kind
        self.requests: list[tuple[str, str, str | None]] = []
        """Method, path and the Authorization header of each."""
        self.visibility: dict[str, str | None] = {}
        self.files: dict[str, bytes] = {}
        self.commits = 0
        self.objects: dict[str, bytes] = {}
        self.large = True
        """Weights and pictures go to the storage for large files, as on the hub."""
        self.refusals: dict[str, tuple[int, str]] = {}
        """Status and message for paths that begin so; "{token}" is what came in the header."""
        self.held = ""
        """Requests to paths that begin so set `arrived` and wait for `go_on`."""
        self.arrived, self.go_on, self.committed = threading.Event(), threading.Event(), threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def given(self) -> set[str | None]:
        """The Authorization headers of what was asked of the account and its repositories."""
        own = ("/api/whoami", "/api/repos", f"/api/{self.kind}")
        return {authorization for _, path, authorization in self.requests if path.startswith(own)}

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict]:
        api = f"/api/{self.kind}/{self.repo}"
        if path == "/api/whoami-v2":
            return 200, {"type": "user", "name": self.repo.partition("/")[0]}
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            known, _ = repo in self.visibility, self.visibility.setdefault(repo, asked.get("visibility"))
            return (409 if known else 200), {"url": f"{self.url}/{repo}"}
        if path == api:
            return 200, {"id": self.repo, "private": self.visibility[self.repo] == "private", "sha": "0" * 40}
        if path == "/api/validate-yaml":
            return 200, {"warnings": [], "errors": []}
        if path == f"{api}/preupload/main":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = ["lfs" if self.large and name.endswith(LARGE) else "regular" for name in names]
            files = [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in zip(names, modes, strict=True)]
            return 200, {"files": files}
        if path.endswith(f"/{self.repo}.git/info/lfs/objects/batch"):
            return 200, {"objects": [self._upload(each) for each in json.loads(body)["objects"]]}
        if method == "PUT" and path.startswith("/storage/"):
            self.objects[path.rpartition("/")[2]] = body
            return 200, {}
        if path == f"{api}/commit/main":
            self._commit([json.loads(line) for line in body.splitlines()])
            return 200, {"commitUrl": f"{self.url}/{self.repo}/commit/1", "commitOid": "1" * 40}
        return 404, {"error": f"nothing is at {path}"}

    def _upload(self, wanted: dict) -> dict:
        return {**wanted, "actions": {"upload": {"href": f"{self.url}/storage/{wanted['oid']}"}}}

    def _commit(self, operations: list[dict]) -> None:
        self.commits += 1
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                content = self.objects[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                self.files[value["path"]] = content
        self.committed.set()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        path, authorization = self.path.partition("?")[0], self.headers.get("Authorization")
        body = self._body()
        self.hub.requests.append((self.command, path, authorization))
        if self.hub.held and path.startswith(self.hub.held):
            self.hub.arrived.set()
            self.hub.go_on.wait(60)
        refusal = next((each for begin, each in self.hub.refusals.items() if path.startswith(begin)), None)
        if refusal is None:
            status, answer = self.hub.answer(self.command, path, body)
        else:
            status, answer = refusal[0], {"error": refusal[1].format(token=authorization)}
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = handle_any

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def log_message(self, *args) -> None:
        pass
