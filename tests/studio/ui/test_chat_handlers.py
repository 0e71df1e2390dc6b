"""What the chat tab does, with the real engine and starter but no browser."""

import json
from dataclasses import fields

import pytest

from studio.backend.engine import Engine, Sampling
from studio.errors import StudioError
from studio.ui import conversation as talk
from studio.ui.answering import Draft, write_answer
from studio.ui.chat_handlers import ChatHandlers, Shown
from studio.ui.trace_store import traces


@pytest.fixture(scope="module")
def handlers(starter_path) -> ChatHandlers:
    engine = Engine(compile_steps=False)
    engine.load("starter")
    return ChatHandlers(engine)


def settings(**changes) -> list:
    return [changes.get(field.name, field.default) for field in fields(Sampling)]


SHORT = settings(max_new_tokens=6, temperature=0)


def last(updates: list[Shown]) -> dict:
    """The newest value of every part."""
    return {name: value for update in updates for name, value in update._asdict().items() if value is not None}


@pytest.fixture
def asked(handlers) -> dict:
    return last(list(handlers.send("Name a colour.", "", "", "session", SHORT)))


def test_an_answer_is_kept_with_its_trace(handlers, asked):
    conversation = talk.from_json(asked["stored"])
    answer = conversation.turns[1].answer
    trace = traces.get(answer.trace_id)
    assert tuple(trace.token_ids.tolist()) == answer.token_ids
    assert answer.prompt_tokens == int(trace.is_prompt.sum())
    assert conversation.turns[1].content == "".join(trace[answer.prompt_tokens :].texts)
    assert json.loads(asked["routing"])["total"] == len(trace)
    assert asked["box"]["submit_btn"] == "Send"


def test_every_update_but_the_last_is_part_of_the_answer(handlers):
    updates = list(handlers.send("Name a colour.", "", "", "session", SHORT))
    totals = [json.loads(update.routing)["total"] for update in updates if update.routing]
    assert totals == sorted(totals) and len(set(totals)) >= 2
    starts = [json.loads(update.routing)["from"] for update in updates if update.routing]
    for start, before in zip(starts[1:], totals, strict=False):
        assert start <= before, "an update overlaps the one before"
    assert updates[0].box["value"] == "" and updates[0].box["stop_btn"] == "Stop"


def test_retry_asks_the_same_again(handlers, asked):
    again = last(list(handlers.retry(asked["stored"], "", "session", SHORT)))
    one, two = talk.from_json(asked["stored"]), talk.from_json(again["stored"])
    assert [turn.content for turn in one.turns] == [turn.content for turn in two.turns]
    assert one.turns[1].answer.trace_id != two.turns[1].answer.trace_id


def test_edit_and_undo(handlers, asked):
    edited = last(list(handlers.edit(0, "Name an animal.", asked["stored"], "", "session", SHORT)))
    assert talk.from_json(edited["stored"]).turns[0].content == "Name an animal."
    undone = handlers.undo(edited["stored"], "session")
    assert undone.box["value"] == "Name an animal." and not talk.from_json(undone.stored).turns


@pytest.mark.parametrize("text", ["", " ", "x" * 1_000_000, None, 7])
def test_what_can_not_be_sent_changes_nothing(handlers, text):
    updates: list[Shown] = []
    with pytest.raises(StudioError):
        updates.extend(handlers.send(text, "", "", "session", SHORT))
    assert not updates


def test_what_the_engine_refuses_goes_back_into_the_box(handlers, asked):
    updates = []
    with pytest.raises(StudioError, match="too long"):
        for update in handlers.send("word " * 19_000, asked["stored"], "", "session", SHORT):
            updates.append(update)
    shown = last(updates)
    assert shown["box"]["value"] == "word " * 19_000
    assert talk.from_json(shown["stored"]) == talk.from_json(asked["stored"])
    retried = last(list(handlers.retry(shown["stored"], "", "session", SHORT)))
    assert len(talk.from_json(retried["stored"]).turns) == 2


def test_bad_settings_are_named(handlers):
    with pytest.raises(StudioError, match=r"temperature.*top_p"):
        list(handlers.send("Hi", "", "", "session", settings(temperature=-1, top_p=7)))


def test_stop_keeps_what_is_written(handlers):
    updates = []
    for update in handlers.send("Count to one thousand.", "", "", "session", settings(temperature=0)):
        updates.append(update)
        if update.routing and len(updates) > 4:
            handlers.stop("session")
    turn = talk.from_json(last(updates)["stored"]).turns[1]
    assert turn.answer.finish == "cancelled" and turn.content
    assert len(turn.answer.token_ids) - turn.answer.prompt_tokens < 200


def test_a_new_chat_drops_the_answer_that_is_written(handlers):
    updates = handlers.send("Count to one thousand.", "", "", "session", settings(temperature=0))
    for _ in range(4):
        next(updates)
    assert not talk.from_json(handlers.clear("session").stored).turns
    assert list(updates) == []


def test_leaving_the_page_stops_the_engine(handlers):
    updates = handlers.send("Count to one thousand.", "", "", "session", settings(temperature=0))
    for _ in range(4):
        next(updates)
    updates.close()
    assert last(list(handlers.send("Hi", "", "", "session", SHORT)))["stored"]


def test_a_lost_trace_is_computed_again_and_says_so(handlers, asked):
    document = json.loads(asked["stored"])
    known = traces.get(document["turns"][1]["answer"]["trace_id"])
    document["turns"][1]["answer"]["trace_id"] = "0" * 32
    shown = handlers.show_routing(json.dumps(document), 0)
    sent = json.loads(shown.routing)
    assert "recomputed" in sent["note"] and sent["total"] == len(known) and sent["picked"]
    again = talk.from_json(shown.stored).turns[1].answer
    assert traces.get(again.trace_id).texts == known.texts
    assert handlers.show_routing(shown.stored, 0).stored is None, "the second time it is known"


def test_another_models_answer_is_not_recomputed_with_this_one(handlers, asked):
    document = json.loads(asked["stored"])
    document["turns"][1]["answer"] |= {"trace_id": "0" * 32, "model_id": "jetmoe/jetmoe-8b"}
    with pytest.raises(StudioError, match="jetmoe/jetmoe-8b"):
        handlers.show_routing(json.dumps(document), 0)


@pytest.mark.parametrize("number", [-1, 1, 99, "0", None, 0.0, True])
def test_answers_that_are_not_there(handlers, asked, number):
    with pytest.raises(StudioError):
        handlers.show_routing(asked["stored"], number)


def test_a_refresh_in_the_middle_puts_the_question_back(handlers):
    stored = talk.to_json(talk.append_user(talk.Conversation(), "Still unanswered?"))
    shown = handlers.open_page(stored)
    assert shown.box["value"] == "Still unanswered?" and shown.chat == []


def test_export_and_import(handlers, asked):
    text = handlers.export_file(asked["stored"], "session")
    shown = handlers.import_file(text.encode(), "session")
    one, two = talk.from_json(asked["stored"]), talk.from_json(shown.stored)
    assert one.turns[1].answer.token_ids == two.turns[1].answer.token_ids
    assert one.turns[1].answer.trace_id != two.turns[1].answer.trace_id
    with pytest.raises(StudioError, match="nothing to export"):
        handlers.export_file("", "session")


def test_drafts_of_an_answer_end_finished(handlers):
    import threading

    conversation = talk.append_user(talk.Conversation(), "Name a colour.")
    drafts = list(write_answer(handlers.engine, conversation, Sampling(max_new_tokens=4), threading.Event()))
    assert drafts[-1].finished and not any(draft.finished for draft in drafts[:-1])
    assert isinstance(drafts[0], Draft)
