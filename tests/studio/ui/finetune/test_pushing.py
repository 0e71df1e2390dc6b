"""Pushing from the page of one person to a fake of the hub, and who else may push at all."""

import logging
import re
from types import SimpleNamespace

import gradio as gr
import pytest
import typer
from huggingface_hub import constants

from studio.backend.chat.engine import Engine
from studio.backend.system import process
from studio.backend.training.queue import Jobs
from studio.cli import main as cli
from studio.errors import StudioError
from studio.ui.finetune import handlers as finetune_handlers
from studio.ui.finetune import pushing
from studio.ui.finetune.handlers import FinetuneHandlers
from studio.ui.finetune.pushing import Account, account_of
from studio.ui.page.layout import build
from studio.ui.server import sign_in
from tests.builders.adapters import finished_run
from tests.builders.fake_hub import REPO, FakeHub, hub_here
from tests.builders.toy_folder import toy_folder

TOKEN = "hf_S3cretOfThisMachine"
ADAPTER = {"README.md", "adapter_config.json", "adapter_model.safetensors"}


@pytest.fixture
def fake(monkeypatch):
    with hub_here(monkeypatch) as hub:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def handlers(tmp_path, monkeypatch) -> FinetuneHandlers:
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(finetune_handlers, "TICK_S", 0.01)
    return FinetuneHandlers(Engine(), Jobs())


@pytest.fixture
def run(handlers, tmp_path):
    return finished_run(toy_folder(tmp_path / "toy"), store=handlers.jobs.store, name="pirate")


def pushed(handlers: FinetuneHandlers, run, repo: str = "pirate", public: bool = False) -> str:
    *_, last = handlers.push(run.id, repo, public, account_of("", None, None))
    return last


def text_of(html: str) -> str:
    return re.sub("<[^>]*>", "", html)


# --- one person


def test_an_adapter_is_looked_at_and_pushed_by_the_machines_token(handlers, run, fake: FakeHub):
    form = handlers.pushable(run)
    assert (
        form.offered and form.repo == "pirate" and "this machine's token" in text_of(form.html).replace("&#x27;", "'")
    )
    assert pushing.EXPORT_FIRST in handlers.push_preview(run.id, form.repo)
    list(handlers.export(run.id, "adapter"))
    push_preview = handlers.push_preview(run.id, REPO)
    assert f"Files for {REPO}: {', '.join(sorted(ADAPTER))}" in push_preview and fake.requests == []
    html = pushed(handlers, run, form.repo)
    assert f'<a href="{fake.url}/{REPO}"' in html and "It is private." in html
    assert {*fake.files} == ADAPTER and fake.visibility == {REPO: "private"}
    card = fake.files["README.md"].decode()
    assert f'"{REPO}")' in card and text_of(push_preview).count("from_pretrained") == card.count("from_pretrained")


def test_public_only_where_it_is_said(handlers, run, fake: FakeHub):
    list(handlers.export(run.id, "adapter"))
    assert "It is public" in pushed(handlers, run, REPO, public=True) and fake.visibility == {REPO: "public"}
    assert "and public" in pushed(handlers, run, REPO, public=False) and fake.commits == 1


def test_the_token_is_nowhere_else(handlers, run, fake: FakeHub, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(constants, "HF_DEBUG", True)
    caplog.set_level(logging.DEBUG)
    list(handlers.export(run.id, "adapter"))
    fake.refusals["/api/models/me/pirate/commit"] = 400, "Bad {token}"
    told = pushed(handlers, run)
    assert "Bad Bearer ***" in told
    fake.refusals.clear()
    told += pushed(handlers, run) + handlers.push_preview(run.id, "x") + handlers.pushable(run).html
    account = account_of("", None, None)
    page = str(build(handlers.engine, handlers.jobs).config)
    seen = told + repr(account) + page + caplog.text + str(process.environment()) + run.recipe().to_yaml()
    assert account.token == TOKEN and TOKEN not in seen and caplog.records
    assert [file for file in tmp_path.rglob("*") if file.is_file() and TOKEN.encode() in file.read_bytes()] == []
    assert fake.given() == {f"Bearer {TOKEN}"}


def test_without_a_token_it_is_said_how_to_get_one(handlers, run, fake, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    form = handlers.pushable(run)
    assert not form.offered and "hf auth login" in form.html and handlers.push_preview(run.id, "x") == ""
    with pytest.raises(StudioError, match="hf auth login"):
        account_of("", None, None)


def test_what_can_not_be_pushed_is_said(handlers, run, fake: FakeHub):
    with pytest.raises(StudioError, match="Export the adapter first"):
        pushed(handlers, run)
    for run_id in (run.id[:8], "../..", ""):
        with pytest.raises(StudioError, match="no such run"):
            list(handlers.push(run_id, "pirate", False, Account(TOKEN)))
    list(handlers.export(run.id, "adapter"))
    assert "Name the repository" in pushed(handlers, run, "me/../x")
    bad = handlers.push_preview(run.id, "<b>/x")
    assert "Name the repository" in bad and "<b>" not in bad
    assert fake.files == {}


# --- several people


def test_of_several_people_those_alone_push_who_are_signed_in(monkeypatch):
    """A profile and a token of Gradio's are nothing without the session that made the owner."""
    profile = SimpleNamespace(username="ada")
    token = gr.OAuthToken("hf_x", f"openid profile {sign_in.SCOPE}", 0)
    for owner in ("user:ada", "anon:ada", "hf:bob", "ada"):
        with pytest.raises(StudioError):
            account_of(owner, profile, token)
    with pytest.raises(StudioError, match="--push NAME/REPO"):
        pushing.destination("user:ada")
    monkeypatch.setattr(sign_in, "offered", lambda: True)
    with pytest.raises(StudioError, match="Sign in with Hugging Face"):
        pushing.destination("anon:1")
    assert account_of("hf:ada", profile, token) == Account("hf_x", "ada")
    for given in ((None, token), (profile, None)):
        with pytest.raises(StudioError, match="Sign in"):
            account_of("hf:ada", *given)
    with pytest.raises(StudioError, match="allow it"):
        account_of("hf:ada", profile, gr.OAuthToken("hf_x", "openid profile", 0))


def test_who_is_signed_in_pushes_to_their_own_account():
    account = Account("hf_x", "ada")
    assert account.repository(" pirate ") == account.repository("ada/pirate") == "ada/pirate"
    with pytest.raises(StudioError, match="You are signed in as ada"):
        account.repository("bob/pirate")


def test_a_push_tells_how_far_it_is_and_goes_on_when_its_page_is_closed(handlers, run, fake: FakeHub):
    list(handlers.export(run.id, "adapter"))
    fake.held = "/api/whoami"
    going = handlers.push(run.id, "pirate", False, account_of("", None, None))
    assert "Contacting the Hub …" in next(going) and fake.arrived.wait(60)
    going.close()  # would wait for ever, if it waited for the hub
    assert fake.files == {}
    fake.go_on.set()
    assert fake.committed.wait(60) and {*fake.files} == ADAPTER


def test_the_help_is_right():
    """What a team's page says instead is what the command line has."""
    assert "hf upload NAME/REPO adapter" in pushing.ELSEWHERE
    command = typer.main.get_command(cli.app).commands["export"]
    assert {"--to", "--push"} <= {option for each in command.params for option in each.opts}
    assert "`python -m studio export RUN --to DIR --push NAME/REPO`" in pushing.ELSEWHERE
