"""Loading another model: the present one answers meanwhile, and after a failure."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from studio.backend.chat import loading
from studio.backend.chat.engine import Engine, Sampling
from studio.backend.models import catalog, placement
from studio.errors import StudioError
from tests.builders.fake_repos import TINY, FakeRepos
from tests.builders.toy_folder import spelling_toy
from tests.builders.waiting import until

SHORT = Sampling(max_new_tokens=4, seed=1)
QUESTION = [{"role": "user", "content": "Say 7"}]


@pytest.fixture(scope="module")
def present(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(spelling_toy(tmp_path_factory.mktemp("models") / "present"))


@pytest.fixture
def engine(repos: FakeRepos, present: str) -> Engine:
    made = Engine()
    made.load(present, precision="fp32")
    return made


def answers(engine: Engine) -> bool:
    return [event.kind for event in engine.generate(QUESTION, SHORT)][-1] == "done"


def failed(engine: Engine) -> bool:
    return engine.status().change is not None and engine.status().change.state == "failed"


def test_the_present_model_answers_until_the_next_one_is_ready(engine, repos, present):
    repos.gate.hold()
    engine.start_loading(TINY)
    until(lambda: any(path.endswith(".safetensors") for path, _ in repos.requests))
    status = engine.status()
    assert (status.state, status.model_id) == ("ready", present) and answers(engine)
    assert status.change.state == "preparing" and status.change.model_id == TINY
    with pytest.raises(StudioError, match="Another model is being loaded"):
        engine.start_loading("starter")
    repos.gate.allow()
    until(lambda: engine.status().change is None)
    assert engine.status().model_id == TINY
    events = list(engine.generate(QUESTION, SHORT))
    assert events[0].trace.experts.shape[:2] == (4, 1) and "in" in engine.status().text


def test_a_failed_download_leaves_the_present_model_and_can_be_retried(engine, repos):
    repos.cut = "model-00004-of-00004.safetensors"
    engine.start_loading(TINY)
    until(lambda: failed(engine))
    assert "complete files are kept" in engine.status().change.text and answers(engine)
    engine.loader.go_back()
    assert engine.status().change is None and engine.status().state == "ready"
    with pytest.raises(StudioError, match="No model has failed"):
        engine.loader.retry()
    engine.start_loading(TINY)
    until(lambda: failed(engine))
    repos.heal()
    engine.loader.retry()
    until(lambda: engine.status().model_id == TINY)
    assert answers(engine)


def test_a_download_is_cancelled(engine, repos, present):
    repos.gate.hold()
    engine.start_loading(TINY)
    until(lambda: any(path.endswith(".safetensors") for path, _ in repos.requests))
    engine.loader.cancel()
    repos.gate.allow()
    until(lambda: engine.status().change is None)
    assert engine.status().model_id == present and not catalog.ready(TINY) and answers(engine)


def test_config_and_tensors_that_disagree_leave_the_present_model(engine, repos):
    config = repos.repos[TINY]["config.json"]
    repos.repos[TINY]["config.json"] = config.replace(b'"num_experts": 16', b'"num_experts": 8')
    with pytest.raises(StudioError, match="experts"):
        engine.load(TINY)
    assert failed(engine) and answers(engine)


@pytest.mark.parametrize("is_damaged", [False, True])
def test_where_both_do_not_fit_the_present_model_is_unloaded(engine, repos, present, monkeypatch, is_damaged):
    monkeypatch.setattr(placement, "free_gib", lambda place: 0.5)  # with the present model unloaded it is enough
    monkeypatch.setattr(Engine, "loaded_gib", lambda engine: 1.0 if engine._decoder else 0.0)
    needs = engine.loader.needs(TINY, "fp32")
    assert not needs.fits_beside and not needs.problem
    if is_damaged:
        config = repos.repos[TINY]["config.json"]
        repos.repos[TINY]["config.json"] = config.replace(b'"num_experts": 16', b'"num_experts": 8')
    engine.start_loading(TINY, precision="fp32")
    if not is_damaged:
        until(lambda: engine.status().model_id == TINY and engine.status().state == "ready")
        return
    until(lambda: failed(engine))
    assert engine.status().state == "failed" and engine.status().change.back_to == present
    with pytest.raises(StudioError, match="isn't ready yet"):
        answers(engine)
    monkeypatch.undo()
    engine.loader.go_back()
    until(lambda: engine.status().state == "ready")
    assert answers(engine)


def test_too_little_memory_is_said_before_the_download(engine, repos, present, monkeypatch):
    monkeypatch.setattr(placement, "free_gib", lambda place: 0.1)
    assert "needs" in engine.loader.needs(TINY, "fp32").problem
    with pytest.raises(StudioError, match="GiB are free"):
        engine.load(TINY, precision="fp32")
    assert not any(path.endswith(".safetensors") for path, _ in repos.requests) and answers(engine)


def test_a_server_whose_first_model_fails_tries_again_with_growing_waits(repos, monkeypatch):
    repos.cut = "model-00004-of-00004.safetensors"
    waits: list[float] = []
    timer = threading.Timer

    def at_once(wait_s: float, work: Callable[[], None]) -> threading.Timer:
        waits.append(wait_s)
        return timer(0.0, work)

    monkeypatch.setattr(loading.threading, "Timer", at_once)
    engine = Engine()
    engine.start_loading(TINY, waits=loading.growing_waits(15.0, 40.0))
    until(lambda: len(waits) >= 4)
    assert waits[:4] == [15.0, 30.0, 40.0, 40.0]
    repos.heal()
    until(lambda: engine.status().state == "ready")
    assert answers(engine) and engine.status().change is None


def test_visitors_of_a_demo_read_nothing_about_files_on_the_server(repos, monkeypatch):
    monkeypatch.setenv("STUDIO_DEMO", "1")
    repos.cut = "model-00004-of-00004.safetensors"
    engine = Engine()
    with pytest.raises(StudioError, match="complete files are kept"):
        engine.load(TINY)
    assert engine.status().text == loading.UNAVAILABLE and "complete files" in engine.status().change.reason
    with pytest.raises(StudioError, match=loading.UNAVAILABLE):
        answers(engine)
