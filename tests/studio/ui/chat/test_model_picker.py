"""The model picker: hidden endpoints are callable, so the server checks what the page would not send."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from studio.backend.chat.engine import Engine
from studio.backend.models import catalog, placement
from studio.ui.chat import model_picker
from studio.ui.chat.model_picker import PickerEvents
from studio.ui.common.offered_models import offered
from studio.ui.page.status import actions
from tests.builders.fake_repos import TINY, FakeRepos
from tests.builders.toy_folder import toy_folder


def asked_by(owner: str = "") -> SimpleNamespace:
    return SimpleNamespace(state=SimpleNamespace(owner=owner))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_folder(tmp_path_factory.mktemp("models") / "toy")


@pytest.fixture(scope="module")
def engine(toy: Path) -> Engine:
    made = Engine()
    made.load(str(toy), precision="fp32")
    return made


@pytest.fixture
def events(engine: Engine, repos: FakeRepos) -> Iterator[PickerEvents]:
    yield PickerEvents(engine)
    assert engine.status().change is None, "nothing was started"


CALLS = {
    "choose": lambda events, model: events.choose(asked_by(), model, "auto"),
    "look up": lambda events, model: events.look_up(asked_by(), model, "auto"),
    "load": lambda events, model: events.load(asked_by(), model, "auto"),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_demo_switches_and_downloads_nothing(events, repos, monkeypatch, call):
    monkeypatch.setenv("STUDIO_DEMO", "1")
    with pytest.raises(gr.Error, match="all visitors share the loaded model"):
        CALLS[call](events, TINY)
    assert not [path for path, _ in repos.requests if "resolve" in path and path.endswith("safetensors")]
    assert set(offered(events.engine)) == {"starter", events.engine.status().model_id}
    assert actions(events.engine.status()) == (False, False, False)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("model", ["/etc", "../toy", None, 7, "", "a/b/c"])
def test_paths_and_other_values_are_refused(events, call, model):
    with pytest.raises(gr.Error, match=r"names no model of the Hub|not in the list"):
        CALLS[call](events, model)


@pytest.mark.parametrize("call", CALLS)
def test_a_folder_of_the_server_is_no_model_of_the_hub(events, call, monkeypatch, toy):
    monkeypatch.chdir(toy.parent.parent)
    with pytest.raises(gr.Error, match="also a folder on the server"):
        CALLS[call](events, f"{toy.parent.name}/toy")


def test_an_unknown_precision_is_refused(events):
    with pytest.raises(gr.Error, match="There is no precision"):
        events.load(asked_by(), TINY, "int3")


def test_private_models_of_the_server_stay_private(events, repos, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    repos.gated.add(TINY)
    with pytest.raises(gr.Error, match="gated"):
        events.look_up(asked_by("user:ada"), TINY, "auto")
    assert {token for _, token in repos.requests} == {None}
    events.look_up(asked_by(), TINY, "auto")
    assert "Bearer hf_mine" in {token for _, token in repos.requests}


def test_what_does_not_fit_can_not_be_loaded(events, monkeypatch):
    monkeypatch.setattr(placement, "free_gib", lambda place: 0.01)
    _, panel, html, load = events.look_up(asked_by(), TINY, "fp32")
    assert panel["visible"] is True and "GiB are free" in html and load["visible"] is False
    with pytest.raises(gr.Error, match="GiB are free"):
        events.load(asked_by(), TINY, "fp32")


def test_the_panel_says_what_happens_to_the_present_model(events, monkeypatch):
    needs = events.engine.loader.needs(TINY, "fp32")
    assert "toy answers until this model is ready" in model_picker.facts(needs, "toy")
    monkeypatch.setattr(type(needs), "fits_beside", False)
    assert "toy answers until the download is complete. Then it is unloaded" in model_picker.facts(needs, "toy")
    assert "<b>" not in model_picker.facts(needs, "<b>toy")


def test_a_base_model_says_that_it_continues_the_text(events):
    assert catalog.entry("allenai/OLMoE-1B-7B-0924").chat_template is False
    needs = events.engine.loader.needs(TINY, "fp32")
    needs = replace(needs, model=replace(needs.model, chat_template=False))
    assert "no chat template: in the chat, it continues your text" in model_picker.facts(needs, None)
