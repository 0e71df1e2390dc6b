"""Two visitors of one server: who knows the ids of somebody else's things gets nothing of them, whatever is asked."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from studio.backend.data import uploads
from studio.ui.chat.conversation import Answer, append_assistant, append_user, from_json, to_json
from studio.ui.classify.form import Form
from studio.ui.common.trace_store import traces
from studio.ui.finetune.run_draft import OWN_FILE, Draft
from studio.ui.server.cookies import Visitors
from studio.ui.server.identity import secret
from tests.builders.visitors import MARK, Studio, Things, Visitor, two_visitors
from tests.builders.waiting import until


@pytest.fixture(scope="module")
def studio(tmp_path_factory) -> Iterator[Studio]:
    with two_visitors(tmp_path_factory.mktemp("studio")) as made:
        yield made


def draft(things: Things) -> str:
    return replace(Draft(), source=OWN_FILE, upload=things.upload, file="rows.csv").to_json()


def conversation(things: Things) -> str:
    """One whose answer has a trace that can't be computed again."""
    asked = append_user(from_json(""), "Hello")
    return to_json(append_assistant(asked, "Good day", Answer(trace_id=things.trace)))


def form(things: Things, **changes: Any) -> list[Any]:
    asked = {"labels": "a, b", "template": "{text}?", "upload": things.upload, "file": "rows.csv", "column": "prompt"}
    return [*Form(**asked | changes).kept().values()]


def kept_form(things: Things) -> dict[str, Any]:
    return Form(by=things.adapter, upload=things.upload, file="rows.csv").kept()


# What a page asks, and Ada is told of what is hers.
TOLD = {
    "the list of runs": lambda v, t: v.watch("runs"),
    "a run": lambda v, t: v.watch(f"runs/{t.run}?after=0"),
    "runs compared": lambda v, t: v.watch(f"comparison?id={t.run}&id={t.other_run}"),
    "a run that is opened": lambda v, t: v.event("opened", "export-box", event={"id": t.run}),
    "an export that is made": lambda v, t: v.event("export", "export-result", t.run, "adapter"),
    "an export": lambda v, t: v.get(f"/exports/{t.run}/adapter.zip"),
    "a classified file": lambda v, t: v.get(f"/labelled/{t.result}.csv"),
    "the draft of a run": lambda v, t: v.event("open_page", "data-preview", draft(t)),
    "the adapters of the chat": lambda v, t: v.event("open_page", "chat", "", {"adapter": t.run}),
    "an uploaded adapter": lambda v, t: v.event("arrange", "base-side", "", {"adapter": t.adapter, "beside": True}),
    "the picker": lambda v, t: v.event("open_list", "adapter"),
    "the adapters picked anew": lambda v, t: v.event("refresh", "adapter", {"adapter": t.adapter}),
    "the classifiers": lambda v, t: v.event("open_list", "classify-by"),
    "the form of classifying": lambda v, t: v.event("open_page", "classify-labels", kept_form(t), t.result),
    "the columns of a file": lambda v, t: v.event("choose_column", "classify-true-column", *form(t)),
    "what is being trained": lambda v, t: v.event("update", "status"),
}  # fmt: skip


@pytest.mark.parametrize("question", [*TOLD])
def test_the_owner_is_told_and_nobody_else(studio, question):
    ask = TOLD[question]
    if question == "an export that is made":  # of an adapter of a toy, which is none
        assert "There is no run" not in ask(studio.ada, studio.things)
    else:
        assert MARK in ask(studio.ada, studio.things)
    assert MARK not in ask(studio.bob, studio.things)


# Ids that are told apart from ones that do not exist would tell that they do.
UNKNOWN = Things(str(uuid.uuid4()), str(uuid.uuid4()), "e" * 32, "d" * 32, "c" * 32, "b" * 32)
ASKED = {
    **TOLD,
    "cancelling": lambda v, t: v.event("act", "runs", event={"action": "cancel", "id": t.other_run}),
    "resuming": lambda v, t: v.event("act", "runs", event={"action": "resume", "id": t.run}),
    "deleting": lambda v, t: v.event("act", "runs", event={"action": "delete", "id": t.run}),
    "pushing": lambda v, t: v.event("push", "push-result", t.run, "stolen", True),
    "what a push would bring": lambda v, t: v.event("preview_push", "push-preview", t.run, "stolen"),
    "the rows of a trace": lambda v, t: v.function("routing", "rows", [t.trace, 0]),
    "the rows of a text's trace": lambda v, t: v.function("classify-routing", "rows", [t.trace, 0]),
    "the rows of a base": lambda v, t: v.function("routing", "rows", [t.trace, 0, "base"]),
    "the routing of an answer": lambda v, t: v.event("pick", "routing", conversation(t), event={"answer": 0}),
    "an answer by an adapter": lambda v, t: v.event("send", "box", "Hello", "", "", {"adapter": t.adapter}),
    "classifying by a run": lambda v, t: v.event("classify", "classify-box", "Hello", *form(t, by=t.run)),
    "classifying a file": lambda v, t: v.event("classify_file", "classify-file-go", *form(t)),
    "how good a run is": lambda v, t: v.event("arrange", "classify-by", t.run),
}  # fmt: skip


def normal(told: str, things: Things) -> str:
    """Without what differs from one call to the next."""
    for thing in vars(things).values():
        told = told.replace(thing, "ID").replace(thing[:8], "ID")
    told = re.sub("[0-9a-f]{32}", "ID", told)
    lines = [line for line in told.splitlines() if "process_completed" in line or "{" not in line]
    messages = [json.loads(line.removeprefix("data: "))["output"] for line in lines if line.startswith("data: ")]
    for message in messages:
        for name in ("duration", "average_duration", "render_config", "changed_state_ids"):
            message.pop(name, None)
    return json.dumps(messages) if messages else told


@pytest.mark.parametrize("question", [*ASKED])
def test_what_is_somebody_elses_is_not_there(studio, question):
    ask = ASKED[question]
    theirs, none = ask(studio.bob, studio.things), ask(studio.bob, UNKNOWN)
    assert MARK not in theirs
    assert _timeless(normal(theirs, studio.things)) == _timeless(normal(none, UNKNOWN))


def _timeless(told: str) -> Any:
    if not told.startswith("{"):
        return told
    return {name: value for name, value in json.loads(told).items() if name != "now"}


def test_nothing_of_it_has_changed(studio):
    """After everything above was asked, in whatever order."""
    store, things = studio.jobs.store, studio.things
    assert (store.get(things.run).state, store.get(things.other_run).state) == ("done", "running")
    assert not store.get(things.other_run).cancel_requested
    assert uploads.find(things.upload).is_file() and traces.get(things.trace) is not None


def test_the_page_itself_tells_nothing(studio):
    for visitor in (Visitor(str(studio.bob.http.base_url)), studio.bob):
        assert MARK not in visitor.page + json.dumps(visitor.config)


def test_a_shared_run_can_be_looked_at_and_nothing_else(studio):
    store, things = studio.jobs.store, studio.things
    store.share(things.run)
    try:
        until(lambda: MARK in TOLD["a run"](studio.bob, things))
        row = json.loads(TOLD["a run"](studio.bob, things))["run"]
        assert row["mine"] is False and json.loads(TOLD["a run"](studio.ada, things))["run"]["mine"] is True
        hidden = [name for name in ASKED if name not in ("a run", "an export that is made")]
        assert [name for name in hidden if MARK in ASKED[name](studio.bob, things)] == []
        assert "There is no run" in ASKED["deleting"](studio.bob, things)
    finally:
        store.share(things.run, False)
    until(lambda: MARK not in TOLD["a run"](studio.bob, things))


def test_a_forged_cookie_gets_a_new_one(studio):
    name = Visitors(secret(studio.jobs.store.home)).name
    visitor = studio.ada.http.cookies[name].split(".")[0]
    forged = Visitors(b"x" * 32).sign(visitor)
    with httpx.Client(base_url=studio.ada.http.base_url, cookies={name: forged}) as http:
        answer = http.get("/")
    assert not answer.cookies[name].startswith(visitor)


def joined(visitor: Visitor, session: str, **more: Any) -> httpx.Response:
    """Ask for an answer of the API, without listening to it."""
    number = next(each["id"] for each in visitor.config["dependencies"] if each["api_name"] == "chat")
    body = {"data": ["Hello"], "fn_index": number, "session_hash": session, "trigger_id": None}
    return visitor.http.post("/gradio_api/queue/join", json=body | more)


def test_a_session_answers_its_owner_only(studio):
    session = uuid.uuid4().hex
    event = joined(studio.ada, session).json()["event_id"]
    cancel = {"session_hash": session, "fn_index": 0, "event_id": event}
    stolen = {
        "the answer": studio.bob.http.get("/gradio_api/queue/data", params={"session_hash": session}),
        "the event": studio.bob.http.get(f"/gradio_api/call/chat/{event}"),
        "its end": studio.bob.http.get(f"/gradio_api/heartbeat/{session}"),
        "a cancel": studio.bob.http.post("/gradio_api/cancel", json=cancel),
        "a cancel by its event": studio.bob.http.post("/gradio_api/cancel", json=cancel | {"session_hash": "x"}),
        "its state": studio.bob.http.post("/gradio_api/component_server", json=cancel | {"component_id": 1}),
        "an event in it": joined(studio.bob, session),
    }
    assert {name: answer.status_code for name, answer in stolen.items()} == dict.fromkeys(stolen, 403) | {
        "an event in it": 400
    }
    with studio.ada.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
        assert any('"process_completed"' in line for line in stream.iter_lines())


def test_the_login_token_is_not_given_to_scripts(studio):
    for path in ("/gradio_api/token", "/gradio_api/token/"):
        assert studio.ada.http.get(path).status_code == 404


def test_an_uploaded_file_is_its_uploaders_only(studio):
    (path,) = studio.ada.http.post("/gradio_api/upload", files=[("files", ("rows.csv", b"a,b\n"))]).json()
    assert studio.ada.http.get(f"/gradio_api/file={path}").status_code == 200
    assert studio.bob.http.get(f"/gradio_api/file={path}").status_code == 403
    assert studio.bob.http.get(f"/gradio_api/file={quote(path, safe='')}").status_code == 403
