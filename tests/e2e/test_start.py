"""What `app.py` makes of its flags and of where it runs; starts that can't succeed end with one sentence and code 2."""

import socket
import subprocess
import sys

import pytest
import torch
from gradio import Blocks

import app
from tests.builders.ports import free_port
from tests.e2e.studio_page import ROOT


def test_a_port_in_use():
    """In a process of its own, for the exit code."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "app.py", "--port", str(port)]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert f"Port {port}" in ended.stderr and f"--port {port + 1}" in ended.stderr and "Traceback" not in ended.stderr


@pytest.fixture
def started(monkeypatch) -> dict:
    """What the app would load and launch."""
    found = {}
    monkeypatch.setattr(app.Jobs, "open", lambda jobs: None)
    monkeypatch.setattr(app.Engine, "start_loading", lambda engine, model, progress: found.update(model=model))
    monkeypatch.setattr(Blocks, "launch", lambda page, **settings: found.update(settings))
    return found


def test_on_a_laptop_it_is_the_starter_for_this_machine_alone(started):
    port = free_port()
    assert app.main(["--port", str(port)]) == 0
    assert (started["model"], started["server_name"], started["server_port"]) == ("starter", "127.0.0.1", port)
    assert not started["share"] and not started["inbrowser"]


def test_on_a_space_with_a_gpu_it_is_the_8b_model_for_everybody(started, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, value in {"SPACE_ID": "me/studio", "SYSTEM": "spaces", "GRADIO_SERVER_NAME": "0.0.0.0"}.items():
        monkeypatch.setenv(name, value)
    assert app.main(["--port", str(free_port())]) == 0
    assert (started["model"], started["server_name"]) == ("jetmoe/jetmoe-8b-chat", "0.0.0.0")


def test_an_unknown_model(monkeypatch, capsys):
    monkeypatch.setattr(app.Jobs, "open", lambda jobs: None)
    assert app.main(["--model", "nope", "--port", str(free_port())]) == 2
    assert "'nope'" in capsys.readouterr().err


def test_not_for_everybody_without_a_word(capsys):
    assert app.main(["--host", "0.0.0.0", "--port", str(free_port())]) == 2
    said = capsys.readouterr().err
    assert "--public" in said and "--auth" in said
