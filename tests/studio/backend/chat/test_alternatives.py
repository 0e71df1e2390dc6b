"""The most likely tokens of each step, kept while an answer is written and computed again."""

import math

import pytest
import torch

from studio.backend.chat.alternatives import MOST, alternatives, most_likely
from studio.backend.chat.engine import Engine, Sampling
from studio.backend.chat.steps import Steps
from studio.errors import StudioError
from tests.builders.toy_folder import spelling_toy

QUESTION = [{"role": "user", "content": "Say 7"}]


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    engine = Engine()
    engine.load(str(spelling_toy(tmp_path_factory.mktemp("models") / "toy")), precision="fp32")
    return engine


def answer(engine: Engine, **settings) -> tuple[list[int], list]:
    """Return all token ids, and the events of the tokens of the answer."""
    events = list(engine.generate(QUESTION, Sampling(max_new_tokens=6, **settings)))
    ids = [int(each) for event in events if event.trace is not None for each in event.trace.token_ids]
    return ids, [event for event in events if event.kind == "token"]


@pytest.mark.parametrize("is_native", [True, False], ids=["native", "eager"])
def test_a_replay_finds_the_alternatives_that_were_kept(engine, monkeypatch, is_native):
    if not is_native:
        monkeypatch.setattr(engine._decoder, "steps", Steps(engine._decoder.model))
    ids, tokens = answer(engine, temperature=0, repetition_penalty=1.0)
    for index, event in enumerate(tokens, start=len(ids) - len(tokens)):
        kept, again = event.alternatives, alternatives(engine._decoder, engine._tokenizer, ids, index)
        assert [each.token_id for each in kept] == [each.token_id for each in again]
        assert [each.logprob for each in kept] == pytest.approx([each.logprob for each in again], abs=1e-4)
        assert kept[0].is_chosen and kept[0].token_id == event.token_id and kept[0].logprob == event.logprob


def test_they_are_the_softmax_of_the_logits_and_the_chosen_one_is_always_there(engine):
    logits = torch.arange(0, 50, dtype=torch.float32).mul(0.1)[None]
    found = most_likely(logits, engine._tokenizer, chosen=3)
    assert [each.token_id for each in found] == [*range(49, 49 - MOST, -1), 3]
    assert [each.is_chosen for each in found] == [False] * MOST + [True]
    expected = logits[0].softmax(-1)[[each.token_id for each in found]].tolist()
    assert [math.exp(each.logprob) for each in found] == pytest.approx(expected)


def test_penalty_and_temperature_do_not_change_them(engine):
    _, plain = answer(engine, temperature=0, repetition_penalty=1.0, seed=7)
    _, changed = answer(engine, temperature=2.0, repetition_penalty=2.0, seed=7)
    assert plain[0].alternatives[:MOST] == tuple(
        each._replace(is_chosen=each.token_id == plain[0].token_id) for each in changed[0].alternatives[:MOST]
    )


@pytest.mark.parametrize("index", [-1, 0, 10**6])
def test_a_token_that_is_not_there_gets_a_sentence(engine, index):
    with pytest.raises(StudioError, match="no alternatives"):
        alternatives(engine._decoder, engine._tokenizer, [1, 2, 3], index)
    with pytest.raises(StudioError, match="no alternatives"):
        alternatives(engine._decoder, engine._tokenizer, [1, 10**9, 3], 2)
