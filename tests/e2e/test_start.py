"""What `app.py` makes of its flags and of where it runs; starts that can't succeed end with one sentence and code 2."""

import os
import runpy
import socket
import sys

import pytest
import torch
from gradio import Blocks

import app
from tests.builders.ports import free_port


def test_a_port_in_use(monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["app.py", "--port", str(port)])
        monkeypatch.setattr(os, "_exit", sys.exit)
        with pytest.raises(SystemExit, match=r"^2$"):
            runpy.run_path(app.__file__, run_name="__main__")
    said = capsys.readouterr().err
    assert f"Port {port}" in said and f"--port {port + 1}" in said


@pytest.fixture
def started(monkeypatch) -> dict:
    """What the app would load and launch."""
    found = {}
    monkeypatch.setattr(app.Jobs, "open", lambda jobs: None)
    monkeypatch.setattr(app.Engine, "start_loading", lambda engine, model, progress, waits: found.update(model=model))
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
