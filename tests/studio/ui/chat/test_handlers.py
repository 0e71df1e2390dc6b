"""What the chat tab does with an engine and a toy, which has adapters in the second half, but no browser."""

import json
import math
import threading
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from jetmoe.adapters.files import CONFIG, WEIGHTS
from studio.analysis.flips import flips
from studio.backend.adapters.uploads import import_adapter
from studio.backend.chat.engine import Engine, Sampling
from studio.backend.chat.events import TokenEvent
from studio.backend.chat.model_defaults import ModelDefaults
from studio.backend.recipe import Recipe
from studio.backend.runs.store import RunStore
from studio.backend.settings import defaults
from studio.errors import StudioError
from studio.ui.chat import answering
from studio.ui.chat import conversation as talk
from studio.ui.chat.answering import Draft, write_answer
from studio.ui.chat.conversation_file import SEVERAL
from studio.ui.chat.examples import EXAMPLES
from studio.ui.chat.handlers import ChatHandlers
from studio.ui.chat.shown import Shown
from studio.ui.common.trace_store import traces
from tests.builders.adapters import make_adapter
from tests.builders.toy_folder import spelling_toy, toy_folder


@pytest.fixture(scope="module")
def handlers(tmp_path_factory) -> ChatHandlers:
    engine = Engine()
    engine.load(str(spelling_toy(tmp_path_factory.mktemp("models") / "toy", max_position_embeddings=4096)))
    return ChatHandlers(engine)


@pytest.fixture
def every_token(monkeypatch) -> None:
    """Is an update of its own, however fast the model is."""
    monkeypatch.setattr(answering, "INTERVAL_S", 0.0)
    monkeypatch.setattr(answering, "SHARE", math.inf)


def settings(**changes) -> list:
    return [changes.get(name, default) for name, default in defaults(Sampling).items()]


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


def test_every_update_but_the_last_is_part_of_the_answer(handlers, every_token):
    updates = list(handlers.send("Name a colour.", "", "", "session", SHORT))
    totals = [json.loads(update.routing)["total"] for update in updates if update.routing]
    assert totals == sorted(totals) and len(set(totals)) >= 6
    starts = [json.loads(update.routing)["from"] for update in updates if update.routing]
    for start, before in zip(starts[1:], totals, strict=False):
        assert start <= before, "an update overlaps the one before"
    assert updates[0].box["value"] == "" and updates[0].box["stop_btn"] == "Stop"


def test_retry_asks_the_same_again(handlers, asked):
    again = last(list(handlers.retry(asked["stored"], "", "session", SHORT)))
    one, two = talk.from_json(asked["stored"]), talk.from_json(again["stored"])
    assert [turn.content for turn in one.turns] == [turn.content for turn in two.turns]
    assert one.turns[1].answer.trace_id != two.turns[1].answer.trace_id


def test_a_cut_answer_is_continued_and_keeps_its_variants(handlers, asked):
    again = last(list(handlers.retry(asked["stored"], "", "session", SHORT)))
    assert [option["value"] for option in again["chat"][-1]["options"]] == ["continue", "previous"]
    working = handlers.continue_answer(again["stored"], "", "session", SHORT)
    first = next(working)
    assert first.stored == again["stored"], "a refresh brings the cut answer back"
    longer = last([first, *working])
    turns = [talk.from_json(each["stored"]).turns for each in (again, longer)]
    assert turns[1][1].content.startswith(turns[0][1].content) and turns[1][1].others == turns[0][1].others
    before, after = (turn[1].answer for turn in turns)
    assert after.token_ids[: len(before.token_ids)] == before.token_ids and after.prompt_tokens == before.prompt_tokens
    assert len(after.token_ids) == len(before.token_ids) + 6 == len(traces.get(after.trace_id))
    assert "12 tokens" in longer["stats"] and "Note" in longer["chat"][-1]["content"][0]["text"]


def test_variants_of_an_answer_are_switched_and_what_follows_goes_on_from_the_shown_one(handlers, asked):
    again = last(list(handlers.retry(asked["stored"], "", "session", settings(max_new_tokens=9, temperature=0))))
    first = handlers.switch(-1, again["stored"], "session")
    assert [option["label"] for option in first.chat[-1]["options"]] == ["Continue", "Answer 2 of 2 ›"]
    assert first.chat[-1]["content"] == asked["chat"][-1]["content"] and first.stats == asked["stats"]
    assert talk.from_json(handlers.switch(1, first.stored, "session").stored) == talk.from_json(again["stored"])
    for step, stored in ((-1, first.stored), (1, again["stored"]), (1, "")):
        with pytest.raises(StudioError, match="no"):
            handlers.switch(step, stored, "session")
    sent = last(list(handlers.send("And now?", first.stored, "", "session", SHORT)))
    assert talk.from_json(sent["stored"]).turns[:2] == talk.from_json(first.stored).turns


def test_an_edited_answer_is_the_beginning_of_the_next(handlers, asked):
    shown = asked["chat"][-1]["content"][0]["text"]
    assert "*Note: The answer was cut at 6 tokens" in shown
    edited = last(list(handlers.edit(1, f"a {shown}", asked["stored"], "", "session", SHORT)))
    answer = talk.from_json(asked["stored"]).turns[1].content
    turn = talk.from_json(edited["stored"]).turns[1]
    assert turn.content == f"a {answer}" and not turn.answer.token_ids and "edited" in edited["stats"]
    longer = last(list(handlers.continue_answer(edited["stored"], "", "session", SHORT)))
    assert talk.from_json(longer["stored"]).turns[1].content.startswith(f"a {answer}")
    with pytest.raises(StudioError, match="answer is empty"):
        list(handlers.edit(1, " ", asked["stored"], "", "session", SHORT))
    for work in (handlers.continue_answer("", "", "session", SHORT), handlers.edit(9, "x", "", "", "session", SHORT)):
        with pytest.raises(StudioError, match="There is no"):
            list(work)


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


def test_stop_keeps_what_is_written(handlers, every_token):
    updates = []
    for update in handlers.send("Count to one thousand.", "", "", "session", settings(temperature=0)):
        updates.append(update)
        if update.routing and len(updates) > 4:
            handlers.stop("session")
    turn = talk.from_json(last(updates)["stored"]).turns[1]
    assert turn.answer.finish == "cancelled" and turn.content
    assert len(turn.answer.token_ids) - turn.answer.prompt_tokens < 200


@pytest.mark.parametrize("leave", ["clear", "open"])
def test_an_answer_that_is_left_is_kept_in_its_own_conversation(handlers, every_token, leave):
    updates = handlers.send("Count to one thousand.", "", "", "session", settings(temperature=0))
    first, *_ = (next(updates) for _ in range(4))
    if leave == "clear":
        assert not talk.from_json(handlers.clear("session").stored).turns
    else:
        handlers.open("", "session")
    (final,) = updates
    assert all(value is None for name, value in final._asdict().items() if name != "stored")
    kept = talk.from_json(final.stored)
    assert kept.id == talk.from_json(first.stored).id and kept.turns[1].content


def test_a_conversation_has_one_id_from_its_first_message_on(handlers, asked):
    again = last(list(handlers.send("And another?", asked["stored"], "", "session", SHORT)))
    ids = {talk.from_json(each["stored"]).id for each in (asked, again)}
    assert len(ids) == 1 and all(ids)
    assert talk.from_json(handlers.clear("session").stored).id not in ids


def test_the_conversation_of_an_earlier_version_is_taken_over_once(handlers, asked):
    document = json.loads(asked["stored"])
    shown = handlers.take_over(json.dumps({name: document[name] for name in ("system", "turns")}))
    assert talk.from_json(shown.stored).turns == talk.from_json(asked["stored"]).turns
    assert handlers.take_over("") == handlers.take_over('{"system": "", "turns": []}') == Shown()
    with pytest.raises(StudioError):
        handlers.take_over("{")


def branch(handlers, stored: str, answer: int, token: int, token_id: int) -> dict:
    return last(list(handlers.branch(answer, token, token_id, stored, "", "session", SHORT)))


def test_an_answer_branches_at_a_token_and_the_first_variant_is_kept(handlers, asked):
    before = talk.from_json(asked["stored"])
    answer = before.turns[1].answer
    token = answer.prompt_tokens + 2
    other = next(each for each in traces.alternatives(answer.trace_id, token) if not each.is_chosen)
    branched = talk.from_json(branch(handlers, asked["stored"], 0, token, other.token_id)["stored"])
    start = "".join(traces.get(answer.trace_id).texts[answer.prompt_tokens : token]) + other.text
    assert branched.turns[1].content.startswith(start) and len(branched.turns[1].content) > len(start)
    assert branched.id == before.id and branched.turns[1].others[0].content == before.turns[1].content
    again = last(list(handlers.send("And another?", asked["stored"], "", "session", SHORT)))
    apart = talk.from_json(branch(handlers, again["stored"], 0, token, other.token_id)["stored"])
    assert apart.id != before.id and len(apart.turns) == 2 and apart.turns[1].content.startswith(start)


def test_alternatives_that_were_not_kept_are_computed_again(handlers, asked):
    answer = talk.from_json(asked["stored"]).turns[1].answer
    token = answer.prompt_tokens + 1
    kept = traces.alternatives(answer.trace_id, token)
    lost = json.loads(asked["stored"])
    trace_id = traces.open(traces.get(answer.trace_id))
    lost["turns"][1]["answer"]["trace_id"] = trace_id
    assert traces.alternatives(trace_id, token) == ()
    shown = handlers.keep_alternatives(json.dumps(lost), 0, token)
    assert json.loads(shown.routing) == {"id": trace_id, "kept": token}
    assert [each.token_id for each in traces.alternatives(trace_id, token)] == [each.token_id for each in kept]


@pytest.mark.parametrize(
    ("token", "token_id"), [(0, 1), (-1, 1), (10**6, 1), (None, 1), (True, 1), ("last", -1), ("last", None)]
)
def test_a_branch_that_is_not_offered_gets_a_sentence(handlers, asked, token, token_id):
    last_token = len(talk.from_json(asked["stored"]).turns[1].answer.token_ids) - 1
    with pytest.raises(StudioError):
        branch(handlers, asked["stored"], 0, last_token if token == "last" else token, token_id)
    if token != "last":
        with pytest.raises(StudioError):
            handlers.keep_alternatives(asked["stored"], 0, token)


def test_a_raw_completion_continues_the_text_of_all_turns(handlers):
    begun = handlers.choose_raw("", True).stored
    assert handlers.prompt_text("Once <|im_end|>", begun, "ignored", SHORT) == "Once <|im_end|>"
    asked = last(list(handlers.send("Once ", begun, "ignored", "session", SHORT)))
    conversation = talk.from_json(asked["stored"])
    answer = conversation.turns[1].answer
    assert conversation.raw and "".join(traces.get(answer.trace_id)[: answer.prompt_tokens].texts) == "Once "
    longer = last(list(handlers.continue_answer(asked["stored"], "", "session", SHORT)))
    more = last(list(handlers.send(" and", longer["stored"], "", "session", SHORT)))
    turns = talk.from_json(more["stored"]).turns
    assert handlers.prompt_text("", more["stored"], "", SHORT) == "".join(turn.content for turn in turns[:3])
    assert handlers.clear("session", raw=True).raw is True and not talk.from_json(handlers.clear("session").stored).raw


def test_the_prompt_of_a_chat_is_shown_with_its_control_tokens(handlers, asked):
    shown = handlers.prompt_text("And another?", asked["stored"], "Be brief.", SHORT)
    assert "Be brief." in shown and shown.count("<|im_start|>") == 5 and shown.endswith("<|im_start|>assistant\n")
    with pytest.raises(StudioError, match="nothing to answer"):
        handlers.prompt_text("", "", "", SHORT)
    with pytest.raises(StudioError, match="too long"):
        handlers.prompt_text("word " * 19_000, handlers.choose_raw("", True).stored, "", SHORT)


def test_a_model_without_a_template_completes_texts(handlers, monkeypatch):
    status = replace(handlers.engine.status(), defaults=ModelDefaults(has_template=False))
    monkeypatch.setattr(handlers.engine, "status", lambda: status)
    assert handlers.is_raw("") and handlers.is_raw("{") and not handlers.is_raw(handlers.choose_raw("", False).stored)
    sent = last(list(handlers.send("Once ", "", "", "session", SHORT)))
    assert talk.from_json(sent["stored"]).raw


def test_several_conversations_are_imported_at_once(handlers, asked):
    document = {"format": SEVERAL, "conversations": [json.loads(asked["stored"])] * 2}
    shown = handlers.import_file(json.dumps(document).encode(), "session")
    several = json.loads(shown.stored)["several"]
    assert len({talk.from_json(each).id for each in several} | {talk.from_json(asked["stored"]).id}) == 3
    assert len(shown.chat) == 2


def test_leaving_the_page_stops_the_engine(handlers, every_token):
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
    shown = handlers.open(stored, "session")
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
    conversation = talk.append_user(talk.Conversation(), "Name a colour.")
    drafts = list(write_answer(handlers.engine, conversation, Sampling(max_new_tokens=4), threading.Event()))
    assert drafts[-1].finished and not any(draft.finished for draft in drafts[:-1])
    assert isinstance(drafts[0], Draft)


def test_a_slow_page_is_shown_less_so_that_the_model_waits_little(monkeypatch):
    """The model writes a token in 10 ms; a page that takes half a second for a draft gets one in 2.5 s."""
    now = 0.0

    def tokens(*args, **kwargs) -> Iterator[TokenEvent]:
        nonlocal now
        for _ in range(1000):
            now += 0.01
            yield TokenEvent("token", "x")

    monkeypatch.setattr(answering.time, "monotonic", lambda: now)
    engine = SimpleNamespace(generate=tokens, status=lambda: SimpleNamespace(model_id="toy"))
    conversation = talk.append_user(talk.Conversation(), "Count.")
    sizes, in_page = [], 0.0
    for draft in write_answer(engine, conversation, Sampling(), threading.Event()):
        sizes.append(len(draft.text))
        now, in_page = now + 0.5, in_page + 0.5
    assert sizes[-1] == 1000 and sizes[:3] == pytest.approx([1, 201, 401], abs=2)
    assert in_page / now == pytest.approx(answering.SHARE, rel=0.25)


# --- adapters, on a toy


class Toy:
    """Handlers over a toy model that has two adapters."""

    def __init__(self, folder: Path) -> None:
        base = toy_folder(folder / "toy")
        self.runs = []
        for seed, name in enumerate(("one", "two"), start=1):
            run = RunStore().create(Recipe.from_settings({"model": str(base)}), name)
            make_adapter(base, run.adapter, seed)
            self.runs.append(RunStore().finish(run.id, "done"))
        engine = Engine()
        engine.load(str(base), precision="fp32")
        self.handlers = ChatHandlers(engine)

    def picked(self, beside: bool = False, number: int = 0) -> dict:
        return {"adapter": self.runs[number].id, "beside": beside}

    def ask(self, text: str, picked: dict | None, stored: str = "", **changes) -> dict:
        chosen = settings(**{"max_new_tokens": 8, "seed": "7", **changes})
        return last(list(self.handlers.send(text, stored, "", "session", chosen, picked)))


@pytest.fixture(scope="module")
def toy_home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("toy")


@pytest.fixture(scope="module")
def made(toy_home) -> Iterator[Toy]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDIO_HOME", str(toy_home / "home"))
        yield Toy(toy_home)


@pytest.fixture
def toy(made, toy_home, monkeypatch) -> Toy:
    monkeypatch.setenv("STUDIO_HOME", str(toy_home / "home"))
    return made


def test_an_uploaded_adapter_is_deleted_by_its_owner_alone(toy):
    handlers, files = copy(toy.handlers), [toy.runs[0].adapter / name for name in (CONFIG, WEIGHTS)]
    model = handlers.engine.status().model_id
    choice = import_adapter(files, "mine", model, owner="me")
    handlers.owner = "me"
    list(handlers.send("Hi", "", "", "session", settings(max_new_tokens=2), {"adapter": choice.id}))
    assert choice.id in handlers.engine.adapters()
    for picked, problem in (({}, "base model"), ({"adapter": toy.runs[0].id}, "adapter of a run")):
        with pytest.raises(StudioError, match=problem):
            handlers.delete_adapter(picked)
    handlers.owner = "somebody else"
    with pytest.raises(StudioError, match="There is no adapter"):
        handlers.delete_adapter({"adapter": choice.id})
    handlers.owner = "me"
    picked, choices, name = handlers.delete_adapter({"adapter": choice.id})
    assert (picked.adapter, name) == ("", "mine") and choice.id not in [identity for _, identity in choices]
    assert choice.id not in handlers.engine.adapters()


def test_the_examples_are_prompts_of_the_adapters_run(toy):
    run, handlers = toy.runs[0], toy.handlers
    assert handlers.examples("") == handlers.examples(run.id) == handlers.examples("0" * 32) == EXAMPLES
    for prompt in ("One?", "One?", "x" * 1000, "Two?", "Three?", "Four?"):
        run.events.append("sample", 1, {"prompt": prompt, "answer": "…"})
    try:
        assert handlers.examples(run.id) == ["One?", "Two?", "Three?"]
    finally:
        (run.folder / "events.jsonl").unlink()


def answer_turn(shown: dict) -> talk.Turn:
    return talk.from_json(shown["stored"]).turns[-1]


def test_an_answer_remembers_its_adapter_and_is_replayed_with_it(toy):
    alone, tuned = answer_turn(toy.ask("Hi", None)), toy.ask("Hi", toy.picked())
    turn = answer_turn(tuned)
    assert (turn.answer.adapter, turn.answer.adapter_title) == (toy.runs[0].id, "one")
    assert turn.answer.token_ids != alone.answer.token_ids and turn.base is None
    assert "one" in tuned["stats"] and json.loads(tuned["routing"])["flips"] == {}
    known = traces.get(turn.answer.trace_id)
    document = json.loads(tuned["stored"])
    document["turns"][1]["answer"]["trace_id"] = "0" * 32
    shown = toy.handlers.show_routing(json.dumps(document), 0)
    again = traces.get(talk.from_json(shown.stored).turns[1].answer.trace_id)
    assert (again.experts == known.experts).mean() > 0.99
    base = toy.handlers.engine.replay(turn.answer.token_ids, turn.answer.prompt_tokens)
    assert (base.experts == known.experts).mean() < 0.97


def test_side_by_side_both_answer_with_one_seed_and_their_own_history(toy):
    first = toy.ask("Hi", toy.picked(beside=True))
    turn = answer_turn(first)
    assert turn.base.content == answer_turn(toy.ask("Hi", None)).content
    assert turn.content == answer_turn(toy.ask("Hi", toy.picked())).content
    assert json.loads(first["routing"])["flips"]["expert"][0] > 0, "compared without being asked"
    assert len(first["base_chat"]) == len(first["chat"]) == 2
    second = answer_turn(toy.ask("And?", toy.picked(beside=True), first["stored"]))
    own, base = traces.get(second.answer.trace_id), traces.get(second.base.answer.trace_id)
    assert turn.content in "".join(own.texts) and turn.content not in "".join(base.texts)
    assert turn.base.content in "".join(base.texts)


def test_without_a_seed_both_get_the_same_drawn_one(toy, tmp_path):
    """Of an adapter that changes nothing, both answers are one."""
    base = Path(toy.runs[0].model)
    run = RunStore().create(Recipe.from_settings({"model": str(base)}), "nothing")
    make_adapter(base, run.adapter, 1, std=0.0)
    RunStore().finish(run.id, "done")
    picked = {"adapter": run.id, "beside": True}
    turns = [answer_turn(toy.ask("Hi", picked, seed="", max_new_tokens=24)) for _ in range(2)]
    assert all(turn.content == turn.base.content for turn in turns)
    assert turns[0].content != turns[1].content
    assert not flips(traces.base(turns[0].answer.trace_id), traces.get(turns[0].answer.trace_id), "expert").any()


def test_an_adapter_that_is_gone_or_of_another_model_changes_nothing(toy):
    updates: list[Shown] = []
    for adapter in ("0" * 32, "../../etc", toy.runs[0].id[:8]):
        with pytest.raises(StudioError, match="does not fit"):
            updates.extend(toy.handlers.send("Hi", "", "", "session", SHORT, {"adapter": adapter}))
    assert not updates


def test_an_adapter_that_goes_under_way_gives_the_message_back(toy):
    updates = toy.handlers.send("Hi", "", "", "session", SHORT, toy.picked(number=1))
    shown = [next(updates)]
    toy.runs[1].adapter.rename(toy.runs[1].adapter.with_name("hidden"))
    try:
        with pytest.raises(StudioError):
            for update in updates:
                shown.append(update)
    finally:
        toy.runs[1].adapter.with_name("hidden").rename(toy.runs[1].adapter)
    assert last(shown)["box"]["value"] == "Hi" and not talk.from_json(last(shown)["stored"]).turns


def test_stopped_before_the_base_answers_the_adapters_part_is_kept(toy, every_token):
    updates = []
    chosen = settings(max_new_tokens=400, temperature=0)
    for update in toy.handlers.send("Say 7", "", "", "session", chosen, toy.picked(beside=True)):
        updates.append(update)
        if update.routing and len(updates) > 4:
            toy.handlers.stop("session")
    turn = answer_turn(last(updates))
    assert turn.answer.finish == "cancelled" and turn.content and turn.base is None
    again = last(list(toy.handlers.retry(last(updates)["stored"], "", "session", SHORT, toy.picked(beside=True))))
    assert answer_turn(again).base.content


def test_the_button_compares_and_the_base_has_its_own_routing(toy):
    shown = toy.ask("Hi", toy.picked())
    told = json.loads(toy.handlers.compare(shown["stored"], 0).routing)
    answer = answer_turn(shown).answer
    flipped = flips(
        toy.handlers.engine.replay(answer.token_ids, answer.prompt_tokens), traces.get(answer.trace_id), "expert"
    )
    assert told["flips"]["expert"][0] == pytest.approx(flipped.mean()) and flipped.any()
    both = toy.ask("Hi", toy.picked(beside=True))
    base = json.loads(toy.handlers.show_message(both["stored"], 1, on_base_side=True).routing)
    assert base["id"] == answer_turn(both).base.answer.trace_id and "flips" not in base
    with pytest.raises(StudioError, match="base model itself"):
        toy.handlers.compare(toy.ask("Hi", None)["stored"], 0)


def test_a_trace_of_another_model_is_not_compared(toy):
    """As an imported file may claim."""
    shown = toy.ask("Hi", toy.picked())
    answer = answer_turn(shown).answer
    trace = traces.get(answer.trace_id)
    one_layer = replace(trace, experts=trace.experts[:1], gates=trace.gates[:1], entropy=trace.entropy[:1])
    document = json.loads(shown["stored"])
    document["turns"][1]["answer"]["trace_id"] = traces.open(one_layer)
    with pytest.raises(StudioError, match="from another model"):
        toy.handlers.compare(json.dumps(document), 0)
    document["turns"][1]["answer"]["model_id"] = "starter"
    with pytest.raises(StudioError, match="written by starter"):
        toy.handlers.compare(json.dumps(document), 0)


def test_an_export_goes_without_the_routing_of_an_adapter_that_is_gone(toy):
    document = json.loads(toy.ask("Hi", toy.picked())["stored"])
    document["turns"][1]["answer"] |= {"trace_id": "0" * 32, "adapter": "0" * 32}
    exported = json.loads(toy.handlers.export_file(json.dumps(document), "session"))
    assert "trace" not in exported["turns"][1]["answer"]
    with pytest.raises(StudioError, match="'one', which no longer exists"):
        toy.handlers.show_routing(json.dumps(document), 0)


def test_two_sides_are_shown_where_they_are_wanted_or_were_made(toy):
    assert toy.handlers.arrange("", None).base_side["visible"] is False
    wanted = toy.handlers.arrange("", toy.picked(beside=True))
    assert wanted.base_side["visible"] and wanted.title["value"] == "<h2>one</h2>"
    made = toy.ask("Hi", toy.picked(beside=True))
    for shown in (toy.handlers.arrange(made["stored"], None), toy.handlers.open(made["stored"], "session")):
        assert shown.base_side["visible"] and len(shown.base_chat) == 2 and shown.base_stats
    went_on = toy.ask("And?", None, made["stored"])
    assert len(went_on["base_chat"]) == 4 and answer_turn(went_on).base is None


def test_what_is_picked_must_fit(toy):
    picked, choices = toy.handlers.pick(toy.picked(beside=True))
    assert picked.kept() == toy.picked(beside=True) and len(choices) >= 3
    assert toy.handlers.pick({"adapter": "gone", "beside": True})[0].kept() == {"adapter": "", "beside": False}
    assert toy.handlers.pick(toy.picked(), toy.runs[1].id)[0].adapter == toy.runs[1].id
    assert toy.handlers.pick(toy.picked(), "nonsense")[0].adapter == toy.runs[0].id
