"""Starts that can't succeed end with one sentence and exit code 2."""

import socket
import subprocess
import sys

from tests.e2e.studio_page import ROOT


def start(*flags: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "app.py", *flags], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_a_port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = start("--port", str(port))
    assert ended.returncode == 2
    assert f"Port {port}" in ended.stderr and f"--port {port + 1}" in ended.stderr and "Traceback" not in ended.stderr


def test_an_unknown_model():
    ended = start("--model", "nope", "--port", "0")
    assert ended.returncode == 2 and "'nope'" in ended.stderr and "Traceback" not in ended.stderr
