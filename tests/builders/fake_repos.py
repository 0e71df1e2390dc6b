"""A hub on this machine that serves repositories as `huggingface_hub` downloads them, with faults on demand.

with serving(FakeRepos()) as hub:                        # HF_ENDPOINT is hub.url
    hub.add_model("me/tiny", folder)
    hub.cut = "model-00002-of-00003.safetensors"         # ends the connection in the middle of it
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

from studio.backend.models import hub as model_hub
from tests.builders.gate import Gate
from tests.builders.http_server import running

COMMIT = "a" * 40
TINY = "me/tiny-olmoe"


class FakeRepos:
    """Files of repositories by name; `requests` has the path and the Authorization header of each request."""

    kind = "models"

    def __init__(self) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.repos: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, str] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.gated: set[str] = set()
        """Repositories that give their files only to requests with a token."""
        self.gate = Gate()
        """The second half of each file of weights waits here."""
        self.heal()

    def heal(self) -> None:
        """End all faults."""
        self.cut = ""
        """Name of a file in whose middle the connection ends; then the file is refused until `heal`."""
        self.is_cut = False
        self.short = ""
        """Name of a file that is shorter than its listing says."""
        self.status: tuple[int, dict[str, str]] | None = None
        """Status and headers that every request gets."""
        self.gate.allow()

    def empty(self) -> None:
        for held in (self.requests, self.gated, self.repos):
            held.clear()
        self.heal()

    def add_model(self, repo: str, folder: Path, commit: str = COMMIT) -> None:
        """A model of the files in a folder."""
        self.repos[repo] = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
        self.commits[repo] = commit

    def answer(self, path: str, has_token: bool = False) -> tuple[int, dict[str, str], object]:
        if self.status is not None:
            return *self.status, {"error": "the hub refuses"}
        is_api, parts = path.startswith("/api/"), path.strip("/").split("/")
        if is_api or self.kind != "models":
            parts = parts[2 if is_api else 1 :]
        repo, verb, rest = "/".join(parts[:2]), "".join(parts[2:3]), parts[3:]
        if repo not in self.repos:
            return 401, {"X-Error-Code": "RepoNotFound"}, {"error": "Repository not found"}
        files, commit = self.repos[repo], self.commits[repo]
        revision, inner = "".join(rest[:1]), "/".join(rest[1:])
        if verb in ("revision", "resolve", "tree") and revision not in ("main", commit):
            return 404, {"X-Error-Code": "RevisionNotFound"}, {"error": "Revision not found"}
        if is_api and verb in ("", "revision"):
            siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
            gated = "auto" if repo in self.gated else False
            info = {"id": repo, "sha": commit, "gated": gated, "siblings": siblings, "cardData": {"license": "mit"}}
            return 200, {}, info
        if is_api and verb == "tree":
            found = [{"type": "file", "oid": _sha(v), "size": len(v), "path": k} for k, v in files.items()]
            return 200, {}, [each for each in found if each["path"].startswith(inner)]
        if verb == "resolve" and repo in self.gated and not has_token:
            return 401, {"X-Error-Code": "GatedRepo"}, {"error": "Access is restricted"}
        if verb == "resolve" and inner in files:
            return 200, {"X-Repo-Commit": commit, "ETag": f'"{_sha(files[inner])}"'}, files[inner]
        return 404, {"X-Error-Code": "EntryNotFound"}, {"error": "Entry not found"}


class _Handler(BaseHTTPRequestHandler):
    hub: FakeRepos
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, token = unquote(self.path.partition("?")[0]), self.headers.get("Authorization")
        self.hub.requests.append((path, token))
        name = path.rpartition("/")[2]
        status, headers, content = self.hub.answer(path, token is not None)
        if self.command == "GET" and name == self.hub.cut and self.hub.is_cut:
            status, headers, content = 503, {}, {"error": "the line is down"}
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        if status == 200 and (part := self.headers.get("Range")):
            first, _, last = part.removeprefix("bytes=").partition("-")
            total, body = len(body), body[int(first) : int(last) + 1 if last else None]
            status, headers = 206, {**headers, "Content-Range": f"bytes {first}-{int(first) + len(body) - 1}/{total}"}
        if self.command == "GET" and name == self.hub.short:
            body = body[:-1]
        self.send_response(status)
        for field, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(field, value)
        self.end_headers()
        if self.command == "GET":
            self._write(name, body)

    do_HEAD = do_GET

    def _write(self, name: str, body: bytes) -> None:
        half = len(body) // 2
        self.wfile.write(body[:half])
        if name == self.hub.cut and not self.hub.is_cut:
            self.hub.is_cut = True
            self.close_connection = True
            return
        if name.endswith(".safetensors"):
            self.hub.gate.wait()
        self.wfile.write(body[half:])

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving(hub: FakeRepos) -> Iterator[FakeRepos]:
    with running(hub.server):
        try:
            yield hub
        finally:
            hub.gate.allow()


def use(hub: FakeRepos, patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Point this process at an empty hub, with its cache in that folder."""
    patch.setattr(constants, "ENDPOINT", hub.url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its storage is not spoken here
    model_hub._ask.cache_clear()
    hub.empty()


def _sha(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
