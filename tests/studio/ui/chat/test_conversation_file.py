"""Export and import of a conversation with its traces."""

import base64
import json
from dataclasses import replace

import numpy as np
import pytest

from jetmoe.routing import RoutingTrace
from studio.errors import StudioError
from studio.ui.chat.conversation import Answer, Conversation, Reply, Turn, to_json
from studio.ui.chat.conversation_file import SEVERAL, export_conversation, import_conversations
from studio.ui.common.trace_store import TraceStore
from tests.builders.traces import make_trace


def exported() -> tuple[dict, Conversation, RoutingTrace]:
    trace = make_trace()
    answer = Answer("starter", "b" * 32, tuple(trace.token_ids.tolist()), int(trace.is_prompt.sum()), 0.4, 20.0, 8192)
    turns = (Turn("user", "<b>Hi</b> 👋 שלום"), Turn("assistant", "${7*7}", answer))
    conversation = Conversation("Be brief.", turns)
    return json.loads(export_conversation(conversation, lambda answer: trace)), conversation, trace


def reimport(document: dict, store: TraceStore | None = None) -> Conversation:
    return import_conversations(json.dumps(document).encode(), (store or TraceStore()).open)[0]


def test_a_conversation_comes_back_with_its_traces():
    document, conversation, trace = exported()
    store = TraceStore()
    again = reimport(document, store)
    answer = again.turns[1].answer
    assert answer.trace_id != conversation.turns[1].answer.trace_id, "ids are made by the server that opens the file"
    assert replace(answer, trace_id="b" * 32) == conversation.turns[1].answer
    assert (again.system, again.turns[0]) == (conversation.system, conversation.turns[0])
    loaded = store.get(answer.trace_id)
    for name in ("token_ids", "is_prompt", "experts", "gates", "entropy", "groups"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(trace, name))
    assert loaded.texts == trace.texts


def test_the_bases_reply_travels_with_its_own_trace():
    _, conversation, trace = exported()
    other = make_trace(seed=1)
    question, turn = conversation.turns
    own = replace(turn.answer, adapter="3f2a", adapter_title="<b>Pirate")
    turn = replace(turn, answer=own, base=Reply("${1}", replace(turn.answer, trace_id="c" * 32)))
    find = lambda answer: other if answer.trace_id == "c" * 32 else trace  # noqa: E731
    document = json.loads(export_conversation(replace(conversation, turns=(question, turn)), find))
    store = TraceStore()
    again = reimport(document, store).turns[1]
    assert (again.answer.adapter, again.answer.adapter_title) == ("3f2a", "<b>Pirate")
    assert again.base.content == "${1}" and len({again.answer.trace_id, again.base.answer.trace_id}) == 2
    np.testing.assert_array_equal(store.get(again.answer.trace_id).experts, trace.experts)
    np.testing.assert_array_equal(store.get(again.base.answer.trace_id).experts, other.experts)
    document["turns"][1]["base"]["answer"]["trace"] = "%%%"
    store = TraceStore()
    with pytest.raises(StudioError, match="message 2"):
        reimport(document, store)
    assert not store.ids()


def test_an_answer_whose_trace_is_lost_is_exported_without():
    _, conversation, _ = exported()
    document = json.loads(export_conversation(conversation, lambda answer: None))
    assert "trace" not in document["turns"][1]["answer"]
    assert reimport(document).turns[1].answer.trace_id == ""


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"{}",
        b"[]",
        b'{"format": "other", "turns": []}',
        b'{"format": "jetmoe-studio-conversation-1"}',
        b'{"format": "jetmoe-studio-conversations-1"}',
        b'{"format": "jetmoe-studio-conversations-1", "conversations": []}',
        b'{"format": "jetmoe-studio-conversations-1", "conversations": [{"turns": [{"role": "system"}]}]}',
    ],
)
def test_other_files_get_a_sentence(data):
    with pytest.raises(StudioError):
        import_conversations(data, TraceStore().open)


def test_several_conversations_of_a_browser_come_back_under_new_ids():
    stored = [replace(exported()[1], id=digit * 32, title=f"Chat {digit}") for digit in "12"]
    document = {"format": SEVERAL, "conversations": [json.loads(to_json(each)) for each in stored]}
    again = import_conversations(json.dumps(document).encode(), TraceStore().open)
    assert again == [replace(each, id="") for each in stored]


def test_a_file_too_large_is_not_read(monkeypatch):
    monkeypatch.setattr("studio.ui.chat.conversation_file.MAX_FILE", 10)
    with pytest.raises(StudioError, match="at most"):
        import_conversations(b" " * 11, TraceStore().open)


def _changed(trace: RoutingTrace, **changes) -> str:
    return base64.b64encode(replace(trace, **changes).to_bytes()).decode()


def test_damaged_and_contradicting_traces_are_refused_and_nothing_is_opened():
    document, _, trace = exported()
    gates = trace.gates.copy()
    gates[0, 0, 0, 0] = np.nan
    bad = {
        "not base64": "%%%",
        "not text": 7,
        "truncated": document["turns"][1]["answer"]["trace"][:1000],
        "other tokens": _changed(trace, token_ids=trace.token_ids + 1),
        "other prompt": _changed(trace, is_prompt=~trace.is_prompt),
        "no number": _changed(trace, gates=gates),
        "fewer tokens": base64.b64encode(trace[:10].to_bytes()).decode(),
        "no groups": _changed(trace[:0], groups=np.zeros(0, np.uint8)),
        "too many groups": _changed(trace, groups=np.array([0, 1, 2, 3, 4, 200], np.uint8)),
    }
    for name, encoded in bad.items():
        document["turns"][1]["answer"]["trace"] = encoded
        store = TraceStore()
        with pytest.raises(StudioError, match="message 2"):
            reimport(document, store)
        assert not store.ids(), name
