"""Half-sent requests and many connections, against a real uvicorn server in a thread."""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from uvicorn.protocols.http import auto

from studio.ui.server import connections
from studio.ui.server.connections import LimitedProtocol, limit_connections
from tests.builders.ports import free_port
from tests.builders.waiting import until


@pytest.fixture
def port(monkeypatch) -> Iterator[int]:
    monkeypatch.setattr(auto, "AutoHTTPProtocol", auto.AutoHTTPProtocol)  # restored at the end
    monkeypatch.setattr(LimitedProtocol, "most", 0)
    monkeypatch.setattr(connections, "HEADER_S", 0.3)
    limit_connections(by_address=True)
    app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("fine"))])
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", timeout_keep_alive=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    yield port
    server.should_exit = True
    thread.join()


def half_sent(port: int, text: bytes = b"GET / HTTP/1.1\r\nHost: a") -> socket.socket:
    sent = socket.create_connection(("127.0.0.1", port))
    sent.settimeout(10)
    sent.sendall(text)
    return sent


def is_closed(sent: socket.socket) -> bool:
    with suppress(ConnectionResetError):
        while data := sent.recv(4096):
            assert data
    return True


@pytest.mark.parametrize(
    "text", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a", b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nX: "]
)
def test_headers_that_do_not_arrive_end_the_connection(port, text):
    with half_sent(port, text) as sent:
        assert is_closed(sent)
    assert httpx.get(f"http://127.0.0.1:{port}").text == "fine"


def test_an_address_has_so_many_connections(port, monkeypatch):
    monkeypatch.setattr(connections, "ADDRESS_CONNECTIONS", 20)
    monkeypatch.setattr(connections, "HEADER_S", 60.0)
    held = [half_sent(port) for _ in range(20)]
    until(lambda: LimitedProtocol.open["127.0.0.1"] == 20)
    with half_sent(port) as one_more:
        assert is_closed(one_more)
    with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.2")) as polite:
        assert polite.get(f"http://127.0.0.1:{port}").text == "fine"
    for each in held:
        each.close()
    until(lambda: not LimitedProtocol.open["127.0.0.1"])
    assert httpx.get(f"http://127.0.0.1:{port}").text == "fine"
