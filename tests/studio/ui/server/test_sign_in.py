"""A Space with sign-in, over HTTP: who is signed in pushes what is theirs, and a forged session counts for nothing."""

from __future__ import annotations

import json
import logging
import shutil
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest
from gradio import oauth
from itsdangerous import TimestampSigner

from studio.backend.adapters import find as adapters
from studio.backend.chat.engine import Engine
from studio.backend.data import uploads
from studio.backend.export import kept
from studio.backend.hosting.exposure import AUTH, Exposure
from studio.backend.recipe import Recipe
from studio.backend.runs.run import Run
from studio.backend.runs.store import RunStore
from studio.backend.training.queue import Jobs
from studio.ui.common.trace_store import traces
from studio.ui.finetune import handlers
from studio.ui.page.layout import build, launch_settings
from studio.ui.server import sign_in
from studio.ui.server.cookies import Visitors
from studio.ui.server.identity import secret
from tests.builders.adapters import finished_run
from tests.builders.fake_hub import FakeHub, hub_here
from tests.builders.ports import free_port
from tests.builders.toy_folder import toy_folder
from tests.builders.traces import make_trace
from tests.builders.visitors import Visitor

SECRET = "of-this-space"
SPACE = {
    "OAUTH_CLIENT_ID": "app", "OAUTH_CLIENT_SECRET": SECRET, "OAUTH_SCOPES": f"openid profile {sign_in.SCOPE}",
    "OPENID_PROVIDER_URL": "https://huggingface.co",
}  # fmt: skip
ADAPTER = {"README.md", "adapter_config.json", "adapter_model.safetensors"}


def session(name: str, secret: str = SECRET, **changes: object) -> str:
    """The cookie that Gradio sets for who has signed in."""
    account = f"https://huggingface.co/{name}"
    info = {
        "access_token": token(name), "scope": SPACE["OAUTH_SCOPES"], "expires_at": int(time.time()) + 3600,
        "userinfo": {"preferred_username": name, "name": name.title(), "profile": account, "picture": account},
    }  # fmt: skip
    data = b64encode(json.dumps({"oauth_info": info | changes}).encode())
    return TimestampSigner(sha256(f"{secret}-v4".encode()).hexdigest()).sign(data).decode()


def token(name: str) -> str:
    return f"hf_oauth_S3cretOf_{name}"


def be_a_space(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("SYSTEM", "spaces")
    patch.setenv("SPACE_ID", "somebody/studio")
    patch.setenv("STUDIO_DEMO", "0")
    for name, value in SPACE.items():
        patch.setattr(oauth, name, value)


@dataclass(frozen=True)
class Place:
    store: RunStore
    hub: FakeHub
    folder: Path
    browser: Visitor
    run: Run
    """Ada's, trained and exported."""

    def visitor(self, cookie: str = "", origin: str = "", **sent: str) -> Visitor:
        """The browser as somebody else's, who has this session; a page's configuration is the same for all."""
        self.browser.http.cookies.clear()
        self.browser.http.headers.pop("Origin", None)
        if cookie:
            self.browser.http.cookies.set("session", cookie)
        if origin:
            self.browser.http.headers["Origin"] = origin
        self.browser.extra = sent
        return self.browser


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("space")
    with pytest.MonkeyPatch.context() as patch, hub_here(patch, "ada/pirate") as hub:
        be_a_space(patch)
        patch.setenv("STUDIO_HOME", str(folder / "home"))
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "gradio"))
        patch.setattr(handlers, "TICK_S", 0.01)
        engine, jobs, port = Engine(), Jobs(), free_port()
        page = build(engine, jobs)
        page.launch(
            server_name="127.0.0.1", server_port=port, prevent_thread_lock=True, quiet=True,
            **launch_settings(engine, jobs, Exposure(space=True)),
        )  # fmt: skip
        browser = Visitor(f"http://127.0.0.1:{port}")
        yield Place(jobs.store, hub, folder, browser, exported(jobs.store, toy_folder(folder / "toy"), "hf:ada"))
        browser.http.close()
        page.close()


def exported(store: RunStore, base: Path, owner: str) -> Run:
    run = finished_run(base, store=store, name="pirate", owner=owner)
    kept.make(store, run.id, "adapter")
    return run


@pytest.fixture
def hub(place: Place) -> FakeHub:
    """As nobody has asked it anything."""
    place.hub.requests.clear()
    place.hub.files.clear()
    place.hub.visibility.clear()
    place.hub.refusals.clear()
    return place.hub


def push(visitor: Visitor, run: Run, repo: str = "pirate", public: bool = False) -> str:
    return visitor.event("push", "push-result", run.id, repo, public)


# --- where it is


@pytest.mark.parametrize("missing", ["", *SPACE, "SYSTEM", AUTH])
def test_the_button_is_where_gradio_can_tell_who_signs_in(missing, monkeypatch, tmp_path):
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path))
    be_a_space(monkeypatch)
    if missing in SPACE:
        monkeypatch.setattr(oauth, missing, None)
    elif missing == "SYSTEM":
        monkeypatch.delenv("SYSTEM")
    elif missing:
        monkeypatch.setenv(missing, "users.txt")
    assert sign_in.offered() == (not missing) == build(Engine(), Jobs()).expects_oauth


# --- what was made before


def test_what_a_browser_made_before_becomes_the_accounts(place):
    visitor = place.visitor()
    visitor.http.get("/")
    cookies, visitors = dict(visitor.http.cookies), Visitors(secret(place.store.home))
    owner, _ = visitors.recognise(cookies)
    mine, others = place.store.create(Recipe(), "mine", owner=owner), place.store.create(Recipe(), "x", owner="anon:x")
    rows = place.folder / "rows.csv"
    rows.write_text("a,b\n")
    upload, trace = uploads.keep(rows, owner), traces.open(make_trace(), owner)
    adapter = place.store.home / "adapters" / ("a" * 32)
    shutil.copytree(place.run.adapter, adapter)
    digest = sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()
    about = {"name": "mine", "model": "starter", "created": 0.0, "sha256": digest, "owner": owner}
    (adapter / "about.json").write_text(json.dumps(about))

    # A session that counts for nothing moves nothing, nor does what is no page.
    for cookie, path in ((FORGED["as Gradio plays it"], "/"), (session("ada"), "/config")):
        visitor.http.get(path, headers={"Cookie": header(cookies | {"session": cookie})})
        assert place.store.get(mine.id).owner == owner
    answer = visitor.http.get("/", headers={"Cookie": header(cookies | {"session": session("ada")})})
    gone = [each for each in answer.headers.get_list("set-cookie") if f"{visitors.name}=;" in each]
    assert len(gone) == 2 and all("Max-Age=0" in each and "Partitioned" in each for each in gone)
    assert place.store.get(mine.id, "hf:ada").owner == json.loads((mine.folder / "run.json").read_text())["owner"]
    assert uploads.find(upload, "hf:ada") and adapters.find_id(adapter.name, "hf:ada")
    assert traces.get(trace, "hf:ada") is not None and traces.get(trace, owner) is None
    assert place.store.get(others.id).owner == "anon:x"
    again = visitor.http.get("/", headers={"Cookie": header({"session": session("ada")})})
    assert not [each for each in again.headers.get_list("set-cookie") if visitors.name in each]


def header(cookies: dict[str, str]) -> str:
    return "; ".join(f"{name}={value}" for name, value in cookies.items())


# --- whose it is


def test_who_is_signed_in_pushes_what_is_theirs_with_their_own_token(place, hub, caplog):
    caplog.set_level(logging.DEBUG)
    ada, run = place.visitor(session("ada")), place.run
    opened = ada.event("opened", "export-box", event={"id": run.id})
    assert "go to your account, ada" in opened and "Files for ada/pirate" in opened
    told = push(ada, run)
    assert f"{hub.url}/ada/pirate" in told and "It is private." in told
    assert {*hub.files} == ADAPTER and hub.visibility == {"ada/pirate": "private"}
    assert hub.given() == {f"Bearer {token('ada')}"}
    assert "whoami" not in str(hub.requests)
    page = ada.http.get("/")
    seen = caplog.text + told + opened + page.text + ada.http.get("/config").text + ada.event("update", "status")
    assert caplog.records and [line for line in seen.splitlines() if token("ada") in line] == []
    files = [file for file in place.folder.rglob("*") if file.is_file()]
    assert len(files) > 9 and [file for file in files if token("ada").encode() in file.read_bytes()] == []


def test_somebody_elses_run_is_pushed_by_nobody(place, hub):
    place.store.share(place.run.id)
    for name in ("bob", "Ada", "ada "):
        assert "There is no run" in push(place.visitor(session(name)), place.run, "stolen", public=True)
    place.store.share(place.run.id, False)
    assert hub.requests == []


def test_nobody_pushes_to_somebody_elses_account(place, hub):
    told = push(place.visitor(session("ada")), place.run, "bob/pirate")
    assert "You are signed in as ada" in told and hub.requests == []


def test_a_name_that_is_taken_is_said(place, hub):
    hub.refusals["/api/models/ada/pirate/commit"] = 403, "Bad {token}"
    told = push(place.visitor(session("ada")), place.run)
    assert "your sign-in lets it create repositories" in told and token("ada") not in told and hub.files == {}


FORGED = {
    "as Gradio plays it": session("ada", secret=""),
    "of another Space": session("ada", secret="of-that-space"),
    "that ran out": session("ada", expires_at=int(time.time()) - 1),
    "without an end": session("ada", expires_at=0),
    "of nonsense": "x.y.z",
    "not there": "",
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_session_that_gradio_did_not_sign_counts_for_nothing(place, hub, kind):
    run, visitor = place.run, place.visitor(FORGED[kind])
    opened = visitor.event("opened", "export-box", event={"id": run.id})
    assert "pirate" not in opened and "Sign in with Hugging Face" in opened
    assert "Sign in with Hugging Face" in push(visitor, run) and hub.requests == []
    assert run.id not in visitor.http.get("/watch/runs").text


def test_other_websites_get_nothing_by_a_session(place, hub):
    """Browsers send it along, as it must work in frames, and Gradio lets every website read the answers of a Space."""
    run = place.run
    for origin in ("https://evil.example", "null"):
        visitor = place.visitor(session("ada"), origin)
        assert run.id not in visitor.http.get("/watch/runs").text
        assert "Sign in with Hugging Face" in push(visitor, run)
    assert hub.requests == []
    own = place.visitor(session("ada"), str(place.browser.http.base_url))
    assert run.id in own.http.get("/watch/runs").text


def test_a_token_in_a_request_is_no_sign_in(place, hub):
    """Gradio hands such a one to functions that ask for a token."""
    visitor = place.visitor(oauth_token=token("ada"))
    assert "Sign in with Hugging Face" in push(visitor, place.run) and hub.requests == []
