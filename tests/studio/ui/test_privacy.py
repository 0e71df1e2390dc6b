"""Two visitors of one server: who knows the ids of somebody else's things gets nothing of them, whatever is asked."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from studio.backend import uploads
from studio.backend.engine import Engine
from studio.backend.jobs import Jobs
from studio.ui.classify_form import Form
from studio.ui.conversation import Answer, append_assistant, append_user, from_json, to_json
from studio.ui.downloads import LABELLED_ENDING
from studio.ui.identity import Visitors, secret
from studio.ui.layout import build, launch_settings
from studio.ui.run_draft import OWN_FILE, Draft
from studio.ui.trace_store import traces
from tests.e2e.studio_page import free_port
from tests.studio.test_analysis import make_trace
from tests.studio.toy_folder import toy_folder
from tests.studio.toy_runs import toy_run

MARK = "zebedee"
"""In the name of everything that is private here."""


class Visitor:
    """A browser without a screen: cookies, and what Gradio's page sends."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=60)
        self.page = self.http.get("/").text  # as everybody begins
        self.config = self.http.get("/config").json()
        self.components = {each["id"]: each["props"].get("elem_id") or "" for each in self.config["components"]}

    def function(self, elem_id: str, name: str, asked: Any) -> str:
        component = next(number for number, known in self.components.items() if known == elem_id)
        body = {"component_id": component, "fn_name": name, "data": asked, "session_hash": uuid.uuid4().hex}
        return self.http.post("/gradio_api/component_server", json=body).text

    def event(self, name: str, shows: str, *data: Any, event: Any = None) -> str:
        """Everything that comes back of a listener, known by its name and by an output or a trigger."""
        listener = next(each for each in self.config["dependencies"] if self._is(each, name, shows))
        session = uuid.uuid4().hex
        inputs = [*data, *[None] * (len(listener["inputs"]) - len(data))]
        body = {"data": inputs, "event_data": event, "fn_index": listener["id"], "session_hash": session}
        joined = self.http.post("/gradio_api/queue/join", json=body | {"trigger_id": None})
        told = [joined.text]
        with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
            for line in stream.iter_lines():
                told.append(line)
                if '"process_completed"' in line:
                    break
        return "\n".join(told)

    def _is(self, listener: dict[str, Any], name: str, shows: str) -> bool:
        numbers = [*listener["outputs"], *(target[0] for target in listener["targets"])]
        names = [self.components.get(number) for number in numbers]
        return (listener["api_name"] or "").rstrip("_0123456789") == name and shows in names

    def get(self, path: str) -> str:
        response = self.http.get(path)
        return f"{response.status_code} {response.headers.get('content-disposition')} {response.text[:200]}"


@dataclass(frozen=True)
class Things:
    """The ids of what is private."""

    run: str
    other_run: str
    upload: str
    result: str
    trace: str
    adapter: str


@dataclass(frozen=True)
class Studio:
    jobs: Jobs
    ada: Visitor
    bob: Visitor
    things: Things


@pytest.fixture(scope="module")
def studio(tmp_path_factory) -> Iterator[Studio]:
    """A toy with two visitors; everything private is Ada's."""
    folder = tmp_path_factory.mktemp("studio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDIO_HOME", str(folder / "home"))
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "gradio"))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        engine, jobs = Engine(compile_steps=False), Jobs()
        engine.load(str(toy_folder(folder / "toy")), precision="fp32")
        page, port = build(engine, jobs), free_port()
        page.launch(
            server_name="127.0.0.1", server_port=port, prevent_thread_lock=True, quiet=True,
            **launch_settings(jobs, several=True),
        )  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        ada, bob = Visitor(url), Visitor(url)
        owner, _ = Visitors(secret(jobs.store.home)).recognise(dict(ada.http.cookies))
        things = _things(jobs, owner, str(folder / "toy"), folder)
        jobs.open()
        yield Studio(jobs, ada, bob, things)
        jobs.close()
        page.close()
        ada.http.close()
        bob.http.close()


def _things(jobs: Jobs, owner: str, model: str, folder: Path) -> Things:
    runs = [toy_run(jobs.store, f"{MARK} {i}", begin=False, model=model, owner=owner) for i in range(2)]
    jobs.store.mark_running(runs[1].run.id)  # in this process
    done = runs[0].train(20).save_adapter().finish("done", "Done.").run
    export = done.folder / "exports" / "adapter"
    export.mkdir(parents=True)
    (export / "README.md").write_text(MARK)
    rows = folder / f"{MARK}.csv"
    rows.write_text(f"prompt,completion,{MARK}_column\n{MARK} asks,{MARK} answers,x\n")
    result = uploads.new_folder(owner)
    (result / f"{MARK}{LABELLED_ENDING}").write_text(MARK)
    adapter = jobs.store.home / "adapters" / uuid.uuid4().hex
    adapter.mkdir(parents=True)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (adapter / name).write_text("{}")
    about = {"name": f"{MARK} adapter", "model": model, "created": time.time(), "sha256": "", "owner": owner}
    (adapter / "about.json").write_text(json.dumps(about))
    trace = traces.open(make_trace(), owner)
    return Things(done.id, runs[1].run.id, uploads.keep(rows, owner), result.name, trace, adapter.name)


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
    "the list of runs": lambda v, t: v.function("runs", "run_list", []),
    "a run": lambda v, t: v.function("runs", "run_events", [t.run, 0]),
    "runs compared": lambda v, t: v.function("runs", "run_comparison", [t.run, t.other_run]),
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
    "what is being trained": lambda v, t: v.event("poll", "status", ""),
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
    "pushing": lambda v, t: v.event("push", "push-token", t.run, "adapter", "bob/stolen", "hf_x", True),
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
        _until(lambda: MARK in TOLD["a run"](studio.bob, things))
        row = json.loads(TOLD["a run"](studio.bob, things))["run"]
        assert row["mine"] is False and json.loads(TOLD["a run"](studio.ada, things))["run"]["mine"] is True
        hidden = [name for name in ASKED if name not in ("a run", "an export that is made")]
        assert [name for name in hidden if MARK in ASKED[name](studio.bob, things)] == []
        assert "There is no run" in ASKED["deleting"](studio.bob, things)
    finally:
        store.share(things.run, False)
    _until(lambda: MARK not in TOLD["a run"](studio.bob, things))


def test_a_forged_cookie_gets_a_new_one(studio):
    name = Visitors(secret(studio.jobs.store.home)).name
    visitor = studio.ada.http.cookies[name].split(".")[0]
    forged = Visitors(b"x" * 32).sign(visitor)
    with httpx.Client(base_url=studio.ada.http.base_url, cookies={name: forged}) as http:
        answer = http.get("/")
    assert not answer.cookies[name].startswith(visitor)


def _until(holds: Any) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)
