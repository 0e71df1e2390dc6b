"""The catalog, and downloads from a hub that is a small server in this process."""

from __future__ import annotations

import json
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from huggingface_hub import constants

from jetmoe.nf4.parts import BYTES_PER_WEIGHT
from studio.backend.models import catalog, starter
from studio.errors import StudioError

PATH = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "jetmoe"}',
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "pytorch_model.bin": b"unsafe",
    "modeling_evil.py": b"unsafe",
}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as snapshot_download asks for."""

    mode = "open"
    files = FILES

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.mode in ("RepoNotFound", "GatedRepo"):
            self._send(404 if self.mode == "RepoNotFound" else 403, b"{}", {"X-Error-Code": self.mode})
        elif "/resolve/" in self.path:
            content = self.files[self.path.rsplit("/", 1)[-1]]
            self._send(200, content, {"ETag": f'"{hash(content) & 0xFFFFFFFF:08x}"', "X-Repo-Commit": COMMIT})
        elif "/tree/" in self.path:
            tree = [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in self.files.items()]
            self._send(200, json.dumps(tree).encode(), {})
        else:
            siblings = [{"rfilename": name} for name in self.files]
            self._send(200, json.dumps({"id": "jetmoe/jetmoe-8b", "sha": COMMIT, "siblings": siblings}).encode(), {})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """Runs `catalog.prepare` against a hub in some mode, or against none."""
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    released = [replace(catalog.RELEASED[0], revision=None, download_gib=0.0), *catalog.RELEASED[1:]]
    monkeypatch.setattr(catalog, "RELEASED", released)

    def run(mode: str | None, files: dict[str, bytes] = FILES) -> tuple[list[str], list[tuple[float, str]]]:
        """Names of the files, and the progress that was told."""
        told: list[tuple[float, str]] = []
        handler = type("OneHub", (Hub,), {"mode": mode, "files": files})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            url = f"http://127.0.0.1:{server.server_address[1] if mode else 9}"
            monkeypatch.setattr(constants, "ENDPOINT", url)
            monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + PATH)
            try:
                folder = catalog.prepare("jetmoe/jetmoe-8b", lambda *step: told.append(step))
            finally:
                server.shutdown()
        assert catalog.ready("jetmoe/jetmoe-8b")
        return sorted(file.name for file in folder.iterdir()), told

    return run


def test_download_takes_safe_files_only(prepare):
    files, told = prepare("open")
    assert files == ["config.json", "model.safetensors", "tokenizer.json"]
    assert told[0][0] == 0.0 and told[-1][0] == 1.0
    assert prepare(None)[0] == files, "a downloaded model needs no network"


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("RepoNotFound", "The hub has no jetmoe/jetmoe-8b at main"),
        ("GatedRepo", "Accept its terms"),
        (None, "Check the network"),
    ],
)
def test_downloads_that_fail_say_why(prepare, mode, words):
    with pytest.raises(StudioError, match=words):
        prepare(mode)


def test_weights_that_are_not_safetensors_are_refused(prepare):
    files = {name: data for name, data in FILES.items() if name != "model.safetensors"}
    with pytest.raises(StudioError, match="no complete safetensors weights"):
        prepare("open", files)


@pytest.fixture
def empty_home(monkeypatch, tmp_path):
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path))
    return tmp_path


def test_starter_comes_first_and_ids_are_unique():
    ids = [model.id for model in catalog.models()]
    assert ids[:4] == ["starter", "jetmoe/jetmoe-8b", "jetmoe/jetmoe-8b-chat", "jetmoe/jetmoe-8b-sft"]
    assert len(ids) == len(set(ids))


def test_rows_are_what_the_command_prints(empty_home):
    rows = catalog.rows()
    assert [set(row) for row in rows] == [{"id", "family", "source", "ready", "path", "needs_gib"}] * len(rows)
    assert rows[0]["id"] == "starter" and rows[0]["ready"] is False and rows[0]["path"] is None
    json.dumps(rows)


def test_folders_in_the_home_are_models(empty_home):
    folder = empty_home / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "jetmoe", "dtype": "float32"}')
    assert not catalog.ready("mine")
    with pytest.raises(StudioError, match="is incomplete"):
        catalog.prepare("mine")
    (folder / "model.safetensors").write_bytes(b"\0" * 4000)
    assert catalog.prepare("mine") == folder and catalog.path("mine") == folder
    assert catalog.entry(str(folder)).source == str(folder)
    assert catalog.entry("mine").family == "jetmoe"


def test_unknown_model_names_the_known(empty_home):
    with pytest.raises(StudioError, match=r"no model 'gpt-5'\. Pick one of starter, jetmoe/jetmoe-8b"):
        catalog.entry("gpt-5")


def test_home_is_configurable(empty_home, monkeypatch):
    assert catalog.home() == empty_home and starter.path() == empty_home / "models" / "starter"
    monkeypatch.delenv("STUDIO_HOME")
    assert catalog.home().name == "jetmoe-studio"


def test_the_size_of_4_bit_weights_is_that_of_the_model_code():
    assert catalog.NF4_BYTES == BYTES_PER_WEIGHT
