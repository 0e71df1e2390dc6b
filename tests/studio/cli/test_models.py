"""Models that a person brings, on the command line: from the Hub and from a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from studio.cli.main import app
from studio.errors import StudioError
from tests.builders.fake_repos import TINY, FakeRepos


def studio(*arguments: str):
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None:
        raise result.exception
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("source", ["the Hub", "a folder"])
def test_a_model_is_brought_from(source, repos: FakeRepos, small_olmoe_path: Path):
    model = TINY if source == "the Hub" else str(small_olmoe_path)
    answer = studio("chat", "--model", model, "--prompt", "Say 7", "--max-new-tokens", "4", "--json")
    assert answer["routing"]["shape"][:2] == [4, 1] and answer["routing"]["shape"][3] == 4
    ready = [row["id"] for row in studio("models", "--json") if row["ready"]]
    assert (TINY in ready) == (source == "the Hub")


def test_another_architecture_is_refused_before_the_download(repos: FakeRepos):
    repos.repos[TINY]["config.json"] = b'{"model_type": "llama"}'
    with pytest.raises(StudioError, match=r"is a 'llama' model. Pick a JetMoE or OLMoE model; .*upcycle"):
        studio("chat", "--model", TINY, "--prompt", "Say 7")
    assert not [path for path, _ in repos.requests if path.endswith(".safetensors")]
