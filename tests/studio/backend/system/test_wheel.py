"""Downloads against a local server: whole, cut off and resumed, damaged, without network, on a full disk."""

from __future__ import annotations

import hashlib
import shutil
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from studio.backend.system import wheel as download
from studio.backend.system.files import require_space
from studio.backend.system.wheel import Pin, fetch_wheel
from studio.errors import StudioError

CONTENT = bytes(range(256)) * 20_000
PIN = Pin("thing", "1.0", "thing-1.0-py3-none-any.whl", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


class Server(ThreadingHTTPServer):
    """Serves CONTENT, honours ranges, and can cut the line after `limit` bytes."""

    limit = len(CONTENT)
    content = CONTENT
    asked: list[str | None]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        span = self.headers.get("Range")
        self.server.asked.append(span)
        start = int(span.removeprefix("bytes=").rstrip("-")) if span else 0
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(self.server.content[start : start + self.server.limit])

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    with Server(("127.0.0.1", 0), Handler) as running:
        running.asked = []
        Thread(target=running.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{running.server_address[1]}/{PIN.filename}"
        monkeypatch.setattr(download, "wheel_url", lambda pin, folder: address)
        yield running
        running.shutdown()


def quiet(fraction: float, text: str) -> None:
    pass


def test_download_reports_progress_and_is_not_repeated(server, tmp_path):
    told: list[float] = []
    wheel = fetch_wheel(PIN, tmp_path, lambda fraction, text: told.append(fraction))
    assert wheel.read_bytes() == CONTENT and told == sorted(told) and told[-1] == 1.0
    fetch_wheel(PIN, tmp_path, quiet)
    assert server.asked == [None]


def test_cut_off_download_is_resumed(server, tmp_path):
    server.limit = 2_000_000
    with pytest.raises(StudioError, match=r"stopped at 2 of 5 MB\. Start again to resume"):
        fetch_wheel(PIN, tmp_path, quiet)
    server.limit = len(CONTENT)
    assert fetch_wheel(PIN, tmp_path, quiet).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=2000000-"]


def test_damaged_file_is_deleted_and_named(server, tmp_path):
    server.content = CONTENT[:-1] + b"!"
    with pytest.raises(StudioError, match=r"thing-1\.0.* was damaged .* deleted\. Start again"):
        fetch_wheel(PIN, tmp_path, quiet)
    server.content = CONTENT
    assert fetch_wheel(PIN, tmp_path, quiet).read_bytes() == CONTENT


def test_file_put_by_hand_is_checked_too(server, tmp_path):
    (tmp_path / PIN.filename).write_bytes(b"something else")
    with pytest.raises(StudioError, match="damaged"):
        fetch_wheel(PIN, tmp_path, quiet)
    assert not server.asked


def test_without_network_the_remedy_and_the_place_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.setenv(name, "")
    with pytest.raises(StudioError, match=r"can't be downloaded .* Check the network") as caught:
        fetch_wheel(PIN, tmp_path, quiet)
    assert str(tmp_path / PIN.filename) in str(caught.value) and "pip download --no-deps thing==1.0" in str(
        caught.value
    )


def test_pip_downloads_where_the_address_cannot_be_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "wheel_url", lambda pin, folder: "http://127.0.0.1:9/nothing")
    monkeypatch.setattr(download, "_pip", lambda pin, folder, *rest: (folder / pin.filename).write_bytes(CONTENT))
    told: list[str] = []
    assert fetch_wheel(PIN, tmp_path, lambda fraction, text: told.append(text)).read_bytes() == CONTENT
    assert "with pip" in told[0]


def test_full_disk_while_writing(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "BLOCK", 1 << 16)
    (tmp_path / PIN.filename).with_suffix(".part").symlink_to("/dev/full")
    with pytest.raises(StudioError, match=r"can't be written .*No space left"):
        fetch_wheel(PIN, tmp_path, quiet)


def test_full_disk_is_seen_before(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(2**40, 2**40, 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StudioError, match=r"2\.0 GiB are needed under .* and 1\.0 GiB are free.*STUDIO_HOME"):
        require_space(tmp_path, 2**31)
