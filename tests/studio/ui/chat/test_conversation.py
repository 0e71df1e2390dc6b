"""Conversations: what people do with them, and that nothing which a browser sends can do more."""

import contextlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.errors import StudioError
from studio.ui.chat import conversation as talk
from studio.ui.chat.conversation import Answer, Conversation, Reply


def spoken(*texts: str) -> Conversation:
    conversation = Conversation("Be brief.")
    for number, text in enumerate(texts):
        if number % 2:
            answer = Answer("starter", "a" * 32, (1, 2, 3), 2, 0.5, 20.0, 8192, "stop", ("A notice.",))
            conversation = talk.append_assistant(conversation, text, answer)
        else:
            conversation = talk.append_user(conversation, text)
    return conversation


def compared() -> Conversation:
    """An answer of the base, one of an adapter, and one side by side."""
    own = Answer("starter", "a" * 32, (1, 2, 3), 2, adapter="3f2a", adapter_title="Pirate")
    base = Reply("base 3", Answer("starter", "b" * 32, (1, 2, 4), 2))
    conversation = spoken("1", "both 1", "2")
    conversation = talk.append_user(talk.append_assistant(conversation, "own 2", own), "3")
    return talk.append_assistant(conversation, "own 3", own, base)


def test_each_side_continues_its_own_answers():
    own, base = compared(), compared().base_side()
    assert [turn.content for turn in own.turns] == ["1", "both 1", "2", "own 2", "3", "own 3"]
    assert [turn.content for turn in base.turns] == ["1", "both 1", "2", "own 2", "3", "base 3"]
    assert base.system == own.system and base.turns[5].answer == own.turns[5].base.answer
    assert base.turns[1] == own.turns[1]
    assert base.turns[3].answer.notices == ("The base model was not asked; this is the answer of Pirate.",)
    assert own.has_base_side and not base.has_base_side


def test_both_sides_come_back_and_both_lose_their_token_ids_when_too_long():
    assert talk.from_json(talk.to_json(compared())) == compared()
    long = replace(compared().turns[5].base.answer, token_ids=tuple(range(100_000, 330_000)))
    kept = talk.from_json(talk.to_json(talk.with_answer(compared(), 5, long, on_base_side=True)))
    assert not kept.turns[5].base.answer.token_ids and kept.turns[5].base.content == "base 3"


def test_variants_come_back_and_broken_ones_get_a_sentence():
    variants = compared().turns[5].variants() * 3
    conversation = talk.append_assistant(spoken("1"), "last", Answer(), others=variants)
    assert talk.from_json(talk.to_json(talk.switch(conversation, -1))) == talk.switch(conversation, -1)
    many = talk.append_assistant(spoken("1"), "last", Answer(), others=variants * 20)
    assert len(many.turns[1].variants()) == talk.MAX_VARIANTS and many.turns[1].variants()[-1].content == "last"
    for others in ("x", [7], [{"role": "user", "content": "x"}], [{"role": "assistant", "content": 7}]):
        turns = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2", "others": others}]
        with pytest.raises(StudioError):
            talk.from_json(json.dumps({"turns": turns}))


def test_an_answer_is_replaced_on_its_side_alone():
    other = Answer("other")
    own = talk.with_answer(compared(), 5, other)
    base = talk.with_answer(compared(), 5, other, on_base_side=True)
    assert own.turns[5].answer == other and own.turns[5].base == compared().turns[5].base
    assert base.turns[5].base.answer == other and base.turns[5].answer == compared().turns[5].answer


@pytest.mark.parametrize("base", [7, "x", [], {}, {"content": 7}, {"content": "x", "answer": {"token_ids": [-1]}}])
def test_a_broken_reply_of_the_base_gets_a_sentence(base):
    document = json.loads(talk.to_json(compared()))
    document["turns"][5]["base"] = base
    with pytest.raises(StudioError, match="essage 6"):
        talk.parse(document)


def test_messages_begin_with_the_system_prompt():
    assert spoken("Hi", "Hello").messages() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    ]
    assert replace(spoken("Hi"), system="  ").messages() == [{"role": "user", "content": "Hi"}]


def test_retry_drops_the_last_answer():
    assert talk.retry(spoken("a", "b", "c", "d")) == spoken("a", "b", "c")
    assert talk.retry(spoken("a")) == spoken("a")
    with pytest.raises(StudioError, match="no question"):
        talk.retry(Conversation())


def test_undo_gives_the_question_back():
    assert talk.undo(spoken("a", "b", "c", "d")) == (spoken("a", "b"), "c")
    assert talk.undo(spoken("a")) == (spoken(), "a")


def test_edit_forgets_what_followed():
    assert talk.edit(spoken("a", "b", "c", "d"), 0, "new") == spoken("new")
    assert talk.edit(spoken("a", "b", "c", "d"), 2, "new") == spoken("a", "b", "new")
    for index in (1, 4, -1):
        with pytest.raises(StudioError):
            talk.edit(spoken("a", "b", "c", "d"), index, "new")


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_an_empty_message_is_refused_kindly(text):
    with pytest.raises(StudioError, match="empty"):
        talk.append_user(Conversation(), text)


def test_a_message_of_a_megabyte_is_refused_with_its_size():
    with pytest.raises(StudioError, match="1,000,000 characters, but at most 100,000"):
        talk.append_user(Conversation(), "x" * 1_000_000)


@given(st.lists(st.text(min_size=1, max_size=60).filter(str.strip), max_size=6))
def test_what_the_browser_keeps_comes_back(texts):
    conversation = spoken(*[text.encode("utf-8", "replace").decode() for text in texts])
    assert talk.from_json(talk.to_json(conversation)) == conversation


def test_too_long_a_conversation_loses_the_oldest_token_ids_first():
    conversation = spoken("a", "b", "c", "d")
    long = replace(conversation.turns[1].answer, token_ids=tuple(range(100_000, 240_000)))
    turns = list(conversation.turns)
    turns[1] = replace(turns[1], answer=long)
    turns[3] = replace(turns[3], answer=long)
    kept = talk.from_json(talk.to_json(replace(conversation, turns=tuple(turns))))
    assert not kept.turns[1].answer.token_ids
    assert kept.turns[3].answer.token_ids == long.token_ids
    assert [turn.content for turn in kept.turns] == ["a", "b", "c", "d"]


BROKEN = [
    "nonsense",
    "[]",
    '{"turns": 1}',
    '{"turns": [1]}',
    '{"turns": [{"role": "assistant", "content": "first"}]}',
    '{"turns": [{"role": "user", "content": 7}]}',
    '{"turns": [{"role": "system", "content": "x"}]}',
    '{"system": [], "turns": []}',
    "[" * 100_000,
    json.dumps({"turns": [{"role": "user", "content": "x"}] * 1000}),
]


@pytest.mark.parametrize("stored", BROKEN)
def test_broken_conversations_get_a_sentence(stored):
    with pytest.raises(StudioError):
        talk.from_json(stored)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("token_ids", [1, "2"]),
        ("token_ids", [-1]),
        ("token_ids", [True]),
        ("token_ids", "abc"),
        ("prompt_tokens", 99),
        ("prompt_tokens", -1),
        ("prompt_tokens", 1.5),
        ("ttft_s", float("nan")),
        ("decode_tok_s", "fast"),
        ("decode_tok_s", 10**400),
        ("context_size", None),
        ("notices", {"a": 1}),
        ("notices", [7]),
        ("model_id", 3),
        ("adapter", 3),
        ("adapter_title", []),
    ],
)
def test_broken_answers_get_a_sentence(name, value):
    document = json.loads(talk.to_json(spoken("a", "b")))
    document["turns"][1]["answer"][name] = value
    with pytest.raises(StudioError, match="essage 2"):
        talk.parse(document)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["turns", "role", "content", "answer"]), inner),
    )
)
def test_nothing_but_a_studio_error_comes_out_of_parse(data):
    with contextlib.suppress(StudioError):
        talk.parse(data)


def test_trace_ids_that_the_server_did_not_make_are_dropped():
    document = json.loads(talk.to_json(spoken("a", "b")))
    document["turns"][1]["answer"]["trace_id"] = "../../etc/passwd"
    assert talk.parse(document).turns[1].answer.trace_id == ""
