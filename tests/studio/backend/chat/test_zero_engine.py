"""The engine of a ZeroGPU Space, without a GPU: its requests run in this process."""

import os
import threading

import pytest

from studio.backend.chat import zero_engine
from studio.backend.chat.sampling import Sampling
from studio.backend.chat.zero_engine import ZeroEngine
from studio.errors import StudioError
from tests.builders.toy_folder import spelling_toy

QUESTION = [{"role": "user", "content": "Say 7"}]


@pytest.fixture
def engine(tmp_path, monkeypatch) -> ZeroEngine:
    monkeypatch.setattr(zero_engine, "_served", None)
    made = ZeroEngine()
    made.load(str(spelling_toy(tmp_path / "toy")), precision="fp32")
    return made


def test_a_process_with_an_earlier_model_does_not_answer_and_ends(engine, tmp_path, monkeypatch):
    """`spaces` keeps a process for the next request; it was forked before the other model was loaded."""
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda code: ended.set())
    monkeypatch.setattr(zero_engine, "EXIT_S", 0.0)
    sampling = Sampling(max_new_tokens=2, seed=1)
    before = engine._model_number
    assert [event.kind for event in engine.generate(QUESTION, sampling)][-1] == "done"
    engine.load(str(spelling_toy(tmp_path / "other", seed=4)), precision="fp32")
    assert [event.kind for event in engine.generate(QUESTION, sampling)][-1] == "done" and not ended.is_set()
    with pytest.raises(StudioError, match="Another model was loaded"):
        list(engine._carry_out("answer", before, QUESTION, sampling, None))
    assert ended.wait(10)
