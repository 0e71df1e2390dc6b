"""A server with a toy model and two visitors, one of whom has private things: what the tests of privacy ask."""

from __future__ import annotations

import itertools
import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from studio.backend.chat.engine import Engine
from studio.backend.data import uploads
from studio.backend.hosting.exposure import Exposure
from studio.backend.system.files import sha256
from studio.backend.training.queue import Jobs
from studio.ui.common.downloads import LABELLED_ENDING
from studio.ui.common.trace_store import traces
from studio.ui.page.layout import build, launch_settings
from studio.ui.server.cookies import Visitors
from studio.ui.server.identity import secret
from tests.builders.ports import free_port
from tests.builders.toy_folder import toy_folder
from tests.builders.toy_runs import toy_run
from tests.builders.traces import make_trace

MARK = "zebedee"
"""In the name of everything that is private here."""


ADDRESSES = itertools.count()


class Visitor:
    """A browser without a screen: cookies, and what Gradio's page sends."""

    def __init__(self, url: str) -> None:
        # Each request from elsewhere: what is tested here is not how many one address may send.
        self.http = httpx.Client(base_url=url, timeout=60, event_hooks={"request": [_move]})
        self.extra: dict[str, Any] = {}
        """What events send beside their data."""
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
        joined = self.http.post("/gradio_api/queue/join", json=body | {"trigger_id": None} | self.extra)
        told = [joined.text]
        if joined.is_error:
            return joined.text
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

    def watch(self, path: str) -> str:
        """What a page asks again and again."""
        return self.http.get(f"/watch/{path}").text

    def get(self, path: str) -> str:
        response = self.http.get(path)
        return f"{response.status_code} {response.headers.get('content-disposition')} {response.text[:200]}"


def _move(request: httpx.Request) -> None:
    number = next(ADDRESSES)
    request.headers["X-Forwarded-For"] = f"203.0.{number // 250}.{number % 250}"


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


@contextmanager
def two_visitors(folder: Path) -> Iterator[Studio]:
    """Everything private is Ada's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDIO_HOME", str(folder / "home"))
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "gradio"))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        engine, jobs = Engine(), Jobs()
        # Nothing ends its answers but their length: by chance one would be empty, which takes the question back.
        engine.load(str(toy_folder(folder / "toy", eos_token_id=None)), precision="fp32")
        page, port = build(engine, jobs), free_port()
        page.launch(
            server_name="127.0.0.1", server_port=port, prevent_thread_lock=True, quiet=True,
            **launch_settings(engine, jobs, Exposure(public=True, proxy=True)),
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
    digest = sha256(adapter / "adapter_model.safetensors")
    about = {"name": f"{MARK} adapter", "model": model, "created": time.time(), "sha256": digest, "owner": owner}
    (adapter / "about.json").write_text(json.dumps(about))
    trace = traces.open(make_trace(), owner)
    return Things(done.id, runs[1].run.id, uploads.keep(rows, owner), result.name, trace, adapter.name)
