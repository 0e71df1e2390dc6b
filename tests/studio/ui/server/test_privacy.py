"""Two visitors of one server: who knows the ids of somebody else's things gets nothing of them, whatever is asked."""

from __future__ import annotations

import json
import os
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
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
    "the adapters of the chat": lambda v, t: v.event("open_page", "adapter", {"adapter": t.run}),
    "an uploaded adapter": lambda v, t: v.event("arrange", "base-side", "", {"adapter": t.adapter, "beside": True}),
    "the picker": lambda v, t: v.event("open_list", "adapter"),
    "the adapters picked anew": lambda v, t: v.event("refresh", "adapter", {"adapter": t.adapter}),
    "the classifiers": lambda v, t: v.event("open_list", "classify-by"),
    "the form of classifying": lambda v, t: v.event("open_page", "classify-labels", kept_form(t), t.result),
    "the columns of a file": lambda v, t: v.event("choose_column", "classify-true-column", *form(t)),
    "what is stored": lambda v, t: v.event("listed", "stored"),
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
    "deleting from the list": lambda v, t: v.event("delete", "stored", [f"run:{t.run}", f"file:{t.upload}"], "yes"),
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


def uploaded(visitor: Visitor, name: str = "rows.csv", text: bytes = b"prompt,completion\n1,2\n") -> str:
    """The path of a file that is uploaded and not used yet."""
    (path,) = visitor.http.post("/gradio_api/upload", files=[("files", (name, text))]).json()
    return path


def variants(path: str, link: Path) -> dict[str, str]:
    """Other ways to write the path of the same file in a URL."""
    folder, name = path.rsplit("/", 1)
    link.symlink_to(folder)
    return {
        "as it is": f"file={path}",
        "encoded": f"file={quote(path, safe='')}",
        "a dot": f"file={folder}/%2E/{name}",
        "two dots": f"file={folder}/x/%2E%2E/{name}",
        "slashes": f"file=/{folder}///{name}",
        "relative": f"file={quote(os.path.relpath(path), safe='').replace('.', '%2E')}",
        "the older route": f"file/{path}",
        "a line feed at the end": f"file={path}%0a",
        "a link": f"file={link}/{name}",
        "encoded twice": f"file={quote(quote(path, safe=''))}",
        "backslashes": f"file={path.replace('/', '%5C')}",
        "a full-width dot": f"file={folder}/%EF%BC%8E/{name}",
        "another case": f"file={folder}/{name.upper()}",
        "a URL": f"file=file://{path}",
    }


def test_an_uploaded_file_is_its_uploaders_only(studio, tmp_path):
    path = uploaded(studio.ada)
    assert studio.ada.http.get(f"/gradio_api/file={path}").status_code == 200
    ways = variants(path, tmp_path / "link")
    refused = {way: studio.bob.http.get(f"/gradio_api/{url}").status_code for way, url in ways.items()}
    assert set(refused.values()) == {403, 404}, refused
    with httpx.Client(base_url=studio.bob.http.base_url) as nobody:  # without a cookie
        assert nobody.get(f"/gradio_api/file={path}").status_code == 403
        assert nobody.get("/gradio_api/file=https://example.org/").status_code == 403


@pytest.mark.parametrize("nested", ["plain", "without meta", "in a list", "in other data"])
def test_an_event_reads_no_file_of_another_visitor(studio, nested):
    path = uploaded(studio.ada, f"{MARK}.csv", f"prompt,completion\n{MARK},{MARK}\n".encode())
    other = f"{path.rpartition('/')[0]}/./{MARK}.csv"
    file: dict[str, Any] = {"path": other, "meta": {"_type": "gradio.FileData"}}
    if nested == "without meta":
        del file["meta"]
    data = {"in a list": [[file]], "in other data": {"x": [{"path": "", "deep": {"deeper": [file]}}]}}.get(nested, file)
    told = studio.bob.event("take", "data-preview", data)
    assert MARK not in told and "belongs to another visitor" in told


def test_a_file_whose_event_has_ended_leaves_the_cache(studio):
    for name, shows in (("rows.csv", "data-preview"), ("recipe.yaml", "data-preview")):
        path = uploaded(studio.ada, name)
        event = "take" if name == "rows.csv" else "load"
        studio.ada.event(event, shows, {"path": path, "meta": {"_type": "gradio.FileData"}})
        until(lambda path=path: not Path(path).exists())


def test_two_visitors_who_upload_the_same_file_both_have_it(studio):
    path = uploaded(studio.ada, "same.csv")
    assert uploaded(studio.bob, "same.csv") == path
    studio.ada.event("take", "data-preview", {"path": path, "meta": {"_type": "gradio.FileData"}})
    until(lambda: studio.ada.http.get(f"/gradio_api/file={path}").status_code == 403)
    assert studio.bob.http.get(f"/gradio_api/file={path}").status_code == 200


def test_the_progress_of_an_upload_is_its_uploaders_only(studio):
    query = {"upload_id": uuid.uuid4().hex}
    studio.ada.http.post("/gradio_api/upload", params=query, files=[("files", ("rows.csv", b"a\n"))])
    assert studio.bob.http.get("/gradio_api/upload_progress", params=query).status_code == 403


@pytest.mark.parametrize("path", ["deep_link?session_hash=x", "proxy=https://x.hf.space/", "vibe-code", "token%0a"])
def test_routes_that_the_page_does_not_need_are_closed(studio, path):
    assert studio.ada.http.get(f"/gradio_api/{path}").status_code == 404


def test_a_form_names_no_session_past_the_check(studio):
    form = {"session_hash": "x", "component_id": "1", "fn_name": "rows", "data": "[]"}
    answer = studio.bob.http.post("/gradio_api/component_server", files=[("f", ("x", b""))], data=form)
    assert answer.status_code == 400


@pytest.mark.parametrize("route", ["queue/join", "run/predict"])
def test_only_events_with_a_conversation_or_a_long_text_are_large(studio, route):
    listeners = {each["api_name"]: each for each in studio.ada.config["dependencies"]}
    answers = {}
    for name in ("undo", "start"):  # a part of the chat, and of the Fine-tune tab
        listener = listeners[name]
        data = ["x" * 300_000, *[None] * (len(listener["inputs"]) - 1)]
        body = {"data": data, "fn_index": listener["id"], "session_hash": uuid.uuid4().hex}
        answers[name] = studio.ada.http.post(f"/gradio_api/{route}", json=body | {"trigger_id": None})
    refused = answers["start"]
    assert refused.status_code in (400, 413) and "256 KiB" in refused.text
    assert "256 KiB" not in answers["undo"].text and answers["undo"].status_code != 413


UNKNOWN_ENDPOINTS = {
    "call/nope": {"data": []},
    "call/v2/nope": {},
    "call/v2/send": {},  # of the page, not of the API
    "run/nope": {"data": []},
    "run/predict": {"data": [], "fn_index": 9999},
    "run/predict?": {"data": [], "fn_index": [0]},
    "queue/join": {"data": [], "fn_index": 9999, "session_hash": "unknown"},
    "component_server": {"data": [], "component_id": 99999, "fn_name": "rows", "session_hash": "unknown"},
    "component_server?": {"data": [], "component_id": 1, "fn_name": ["rows"], "session_hash": "unknown"},
    "queue/data?session_hash=unknown": None,
    "call/chat/unknown": None,
}


@pytest.mark.parametrize("path", [*UNKNOWN_ENDPOINTS])
def test_what_does_not_exist_is_not_found(studio, path):
    body = UNKNOWN_ENDPOINTS[path]
    answer = studio.bob.http.request("POST" if body is not None else "GET", f"/gradio_api/{path}", json=body)
    assert answer.status_code == 404 and "There is no such" in answer.json()["detail"]


@pytest.mark.parametrize("arguments", [{}, {"text": "x"}, {"message": "x", "other": 1}])
def test_wrong_arguments_of_the_api_are_named(studio, arguments):
    answer = studio.bob.http.post("/gradio_api/call/v2/chat", json=arguments)
    assert answer.status_code == 422 and "it needs message" in answer.json()["detail"]


def test_a_bad_value_is_neither_printed_nor_returned_in_full(studio, capfd):
    listener = next(each for each in studio.bob.config["dependencies"] if each["api_name"] == "export_1")
    kind = "forged\nline" + "x" * 100_000
    body = {"data": ["", kind], "fn_index": listener["id"], "session_hash": uuid.uuid4().hex}
    answer = studio.bob.http.post("/gradio_api/queue/join", json=body | {"trigger_id": None})
    session = {"session_hash": body["session_hash"]}
    with studio.bob.http.stream("GET", "/gradio_api/queue/data", params=session) as stream:
        told = next(line for line in stream.iter_lines() if '"process_completed"' in line)
    assert answer.status_code == 200 and "not in the list of choices" in told and len(told) < 2000
    assert "forged" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("paths", [["/x" * 1_000_000], ["/x/y"] * 10_000], ids=["long", "many"])
def test_paths_that_would_take_long_to_resolve_are_refused_at_once(studio, paths):
    data = [{"path": path} for path in paths]
    begun = time.monotonic()
    assert "belongs to another visitor" in studio.bob.event("take", "data-preview", data)
    assert time.monotonic() - begun < 20  # on a busy machine
