"""A hub of data sets on this machine: what `datasets` and `huggingface_hub` ask of the real one, and nothing more."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import datasets
import pytest
from huggingface_hub import constants

from studio.backend.data import hub_dataset
from tests.builders.http_server import running

COMMIT = "a" * 40


class FakeDatasets:
    """Files of data sets by repository; `requests` has the path and the Authorization header of each request."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, str] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.gated: set[str] = set()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def add(self, repo: str, splits: dict[str, list[dict]], commit: str = COMMIT) -> None:
        """A data set of one JSONL file for each split."""
        configs = "".join(f"  - split: {name}\n    path: data/{name}.jsonl\n" for name in splits)
        files = {f"data/{name}.jsonl": "\n".join(map(json.dumps, rows)).encode() for name, rows in splits.items()}
        card = f"---\nconfigs:\n- config_name: default\n  data_files:\n{configs}---\n"
        self.repos[repo], self.commits[repo] = {"README.md": card.encode(), **files}, commit

    def answer(self, path: str) -> tuple[int, dict[str, str], object]:
        kind, _, rest = path.strip("/").partition("/datasets/" if path.startswith("/api") else "/")
        owner, _, rest = rest.partition("/")
        name, _, rest = rest.partition("/")
        repo = f"{owner}/{name}"
        if repo not in self.repos:
            return 401, {"X-Error-Code": "RepoNotFound"}, {"error": "Repository not found"}
        files, commit = self.repos[repo], self.commits[repo]
        verb, _, rest = rest.partition("/")
        revision, _, inner = rest.partition("/")
        if verb in ("revision", "resolve", "tree") and revision not in ("main", commit):
            return 404, {"X-Error-Code": "RevisionNotFound"}, {"error": "Revision not found"}
        if kind == "api" and verb in ("", "revision"):
            gated = "auto" if repo in self.gated else False
            return 200, {}, {"id": repo, "sha": commit, "gated": gated, "siblings": [{"rfilename": f} for f in files]}
        if kind == "api" and verb == "tree":
            found = [{"type": "file", "oid": _sha(v), "size": len(v), "path": k} for k, v in files.items()]
            return 200, {}, [each for each in found if each["path"].startswith(inner)]
        if verb == "resolve" and inner in files:
            return 200, {"X-Repo-Commit": commit, "ETag": f'"{_sha(files[inner])}"'}, files[inner]
        return 404, {"X-Error-Code": "EntryNotFound"}, {"error": "Entry not found"}


class _Handler(BaseHTTPRequestHandler):
    hub: FakeDatasets
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.hub.requests.append((path, self.headers.get("Authorization")))
        status, headers, content = self.hub.answer(path)
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        if status == 200 and (part := self.headers.get("Range")):
            first, _, last = part.removeprefix("bytes=").partition("-")
            total, body = len(body), body[int(first) : int(last) + 1 if last else None]
            status, headers = 206, {**headers, "Content-Range": f"bytes {first}-{int(first) + len(body) - 1}/{total}"}
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving(hub: FakeDatasets) -> Iterator[FakeDatasets]:
    with running(hub.server):
        yield hub


def use(hub: FakeDatasets, patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Point the libraries of this process at an empty hub, with their caches in that folder."""
    patch.setattr(constants, "ENDPOINT", hub.url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    patch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
    patch.setattr(datasets.config, "HUB_DATASETS_URL", hub.url + "/datasets/{repo_id}/resolve/{revision}/{path}")
    hub_dataset._ask_hub.cache_clear()
    for held in (hub.requests, hub.gated, hub.repos):
        held.clear()


def _sha(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
