"""Pushing to a server on this machine that speaks the hub's protocol: what arrives, who sees it, what fails, tokens."""

import json
import logging
import re
import shutil
import traceback
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants
from typer.testing import CliRunner

from studio.backend.export import hub
from studio.backend.export.export import export
from studio.cli import main as cli
from studio.errors import StudioError
from tests.builders.adapters import finished_run
from tests.builders.fake_hub import REPO, hub_here
from tests.builders.toy_folder import toy_folder

TOKEN = "hf_S3cretOfThisTest"
ADAPTER = {"README.md", "adapter_config.json", "adapter_model.safetensors"}


@pytest.fixture
def fake(monkeypatch):
    with hub_here(monkeypatch) as hub:
        yield hub


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[str, Path]:
    """An adapter and a merged model of a toy run, and beside their files some that are nobody's business."""
    folder = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDIO_HOME", str(folder / "home"))
        run = finished_run(toy_folder(folder / "toy"))
        export(run.id, folder / "adapter")
        export(run.id, folder / "merged", merge=True)
    for name in ("adapter", "merged"):
        for stray in (".env", "events.jsonl", "optimizer.pt", "adapter_model.bin", "model.safetensors.bak"):
            (folder / name / stray).write_text(TOKEN)
        (folder / name / "checkpoints").mkdir()
        (folder / name / "checkpoints/README.md").touch()
        (folder / name / "vocab.json").symlink_to("/etc/passwd")
    return {name: folder / name for name in ("adapter", "merged")}


def contents(folder: Path, names: set[str]) -> dict[str, bytes]:
    """What of these files is to arrive: the card names the repository, and no base that is not on the hub."""
    files = {name: (folder / name).read_bytes() for name in names}
    card = files["README.md"].replace(b"THIS FOLDER", REPO.encode())
    return files | {"README.md": re.sub(rb"base_model: toy\nbase_model_relation: \w+\n", b"", card)}


def push(folder: Path, **settings) -> str:
    return hub.push(folder, REPO, TOKEN, **settings)


def refused(folder: Path, **settings) -> str:
    """The sentence; the token is in nothing that a traceback prints."""
    with pytest.raises(StudioError) as raised:
        push(folder, **settings)
    assert TOKEN not in "".join(traceback.format_exception(raised.value))
    text = str(raised.value)
    assert len(text) < 500 and "\n" not in text
    return text


# --- what arrives


@pytest.mark.parametrize("large", [True, False], ids=["large files apart", "all in the commit"])
def test_the_adapter_arrives_as_it_is(fake, exported, large, monkeypatch):
    fake.large = large
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", large)
    steps: list[tuple[float, str]] = []
    assert push(exported["adapter"], progress=lambda *step: steps.append(step)) == f"{fake.url}/{REPO}"
    assert fake.files == contents(exported["adapter"], ADAPTER)
    assert fake.visibility == {REPO: "private"} and fake.commits == 1 and bool(fake.objects) == large
    fractions = [fraction for fraction, _ in steps]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0 and "3 files" in steps[1][1]


def test_the_merged_model_arrives_with_its_tokenizer(fake, exported):
    push(exported["merged"])
    names = {"README.md", "merge_proof.json", "config.json", "generation_config.json", "model.safetensors"}
    names |= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert fake.files == contents(exported["merged"], names)


def test_a_model_in_several_files(fake, tmp_path):
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    names += ["README.md", "config.json", "model.safetensors.index.json"]
    for name in [*names, "model-1.safetensors", "model-00001-of-00002.safetensors.part"]:
        (tmp_path / name).write_text(name)
    push(tmp_path)
    assert set(fake.files) == set(names)


def test_the_token_goes_to_the_hub_alone(fake, exported):
    push(exported["adapter"])
    assert {path.split("/")[1] for _, path, _ in fake.requests} == {"api", "me", "storage"}
    for method, path, authorization in fake.requests:
        assert authorization == (None if path.startswith("/storage/") else f"Bearer {TOKEN}"), (method, path)


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_the_card_names_the_repository(fake, exported, tmp_path, kind):
    """And a base only where the hub has it."""
    folder = shutil.copytree(exported[kind], tmp_path / kind, symlinks=True)
    push(folder)
    card = fake.files["README.md"].decode()
    assert f'from_pretrained({"base, " if kind == "adapter" else ""}"{REPO}")' in card
    assert "THIS FOLDER" not in card and "base_model" not in ModelCard(card).data.to_dict()
    on_hub = "---\nbase_model: jetmoe/jetmoe-8b\nbase_model_relation: adapter\n---\n"
    (folder / "README.md").write_text(on_hub)
    push(folder)
    assert fake.files["README.md"].decode() == on_hub


def test_pushing_again_is_one_more_commit(fake, exported):
    push(exported["adapter"])
    push(exported["adapter"])
    assert fake.commits == 2 and fake.visibility == {REPO: "private"}


# --- who may see it


def test_public_where_asked(fake, exported):
    push(exported["adapter"], private=False)
    assert fake.visibility == {REPO: "public"} and set(fake.files) == ADAPTER


def test_a_public_repository_gets_nothing_private(fake, exported):
    fake.visibility[REPO] = "public"
    assert "is on the hub already, and public" in refused(exported["adapter"])
    assert fake.files == {} and fake.objects == {} and fake.visibility == {REPO: "public"}
    push(exported["adapter"], private=False)
    assert set(fake.files) == ADAPTER


# --- what fails

REFUSALS = {
    "a refused token": ("/api/repos/create", 401, "refuses the token. Create one with write access at https://hug"),
    "a token that may only read": ("/api/repos/create", 403, "may not write to me/pirate. Use one that may"),
    "no room": ("/api/repos/create", 402, "no storage left"),
    "too many requests": ("/api/repos/create", 429, "too many requests from you. Wait some minutes"),
    "a hub that is down": ("/api/repos/create", 503, "internal error (HTTP 503). Push again later"),
    "a request that it doesn't take": ("/api/models/me/pirate/commit", 400, "(HTTP 400): Bad Bearer ***"),
    "somebody else's commit": ("/api/models/me/pirate/commit", 409, "Somebody else is changing me/pirate"),
    "a repository that went away": ("/api/models/me/pirate/preupload", 404, "has no me/pirate that this token"),
    "a storage that refuses": ("/storage/", 403, "may not write to me/pirate"),
    "a card that it doesn't take": ("/api/validate-yaml", 400, "(HTTP 400): Bad Bearer ***"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refusals_are_sentences(fake, exported, what, caplog):
    """Even where the hub repeats the token."""
    caplog.set_level(logging.DEBUG)
    path, status, sentence = REFUSALS[what]
    fake.refusals[path] = status, "Bad {token}"
    if status in (401, 402, 403):
        fake.refusals[f"/api/models/{REPO}"] = status, "Bad {token}"
    if path == "/storage/":
        del fake.refusals[f"/api/models/{REPO}"]
    assert sentence in refused(exported["adapter"])
    assert fake.files == {} and caplog.records and TOKEN not in caplog.text


def test_no_network(exported, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "can't be reached (ConnectError). Check the network" in refused(exported["adapter"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refused(exported["adapter"])


@pytest.mark.parametrize(
    "repo_id",
    ["pirate", "a/b/c", "", "../x", "me/", "me/pi rate", "me/pirate.git", "me/a--b", "me/" + "a" * 97, "mé/x", TOKEN],
)
def test_bad_names(fake, exported, repo_id):
    with pytest.raises(StudioError, match="Name the repository as NAME/REPO") as raised:
        hub.push(exported["adapter"], repo_id, TOKEN)
    assert TOKEN not in str(raised.value) and fake.requests == []


@pytest.mark.parametrize("token", ["", " ", "hf a", "hf_\nX-Evil: 1", "hf_é"])
def test_bad_tokens(fake, exported, token):
    with pytest.raises(StudioError, match="This is not a token of the hub") as raised:
        hub.push(exported["adapter"], REPO, token)
    assert fake.requests == [] and (not token.strip() or token not in str(raised.value))


def test_a_folder_without_an_export(fake, exported, tmp_path):
    (tmp_path / "README.md").touch()
    (tmp_path / "adapter_model.bin").touch()
    for folder in (tmp_path, tmp_path / "nothing", exported["adapter"] / "README.md"):
        assert "holds neither an exported adapter nor a merged model" in refused(folder)
    assert fake.requests == []


SIGNED_IN = {
    "a sign-in that ran out": (401, "Sign out at the top of the page, sign in again"),
    "a repository that the studio did not make": (403, "may not write to me/pirate: your sign-in lets it create"),
    "the same where it is hidden": (404, "may not write to me/pirate: your sign-in lets it create"),
}


@pytest.mark.parametrize("what", SIGNED_IN)
def test_refusals_to_who_is_signed_in_speak_of_no_token(fake, exported, what):
    status, sentence = SIGNED_IN[what]
    fake.refusals[f"/api/models/{REPO}/commit"] = status, "Bad {token}"
    text = refused(exported["adapter"], signed_in=True)
    assert sentence in text and "token" not in text


# --- names


def test_whose_token_it_is(fake):
    assert hub.account(TOKEN) == "me" and fake.requests == [("GET", "/api/whoami-v2", f"Bearer {TOKEN}")]
    fake.refusals["/api/whoami"] = 401, "Bad {token}"
    with pytest.raises(StudioError, match="refuses the token") as raised:
        hub.account(TOKEN)
    assert TOKEN not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("pirate 2", "pirate-2"), ("<b>Müller & Söhne</b>", "b-Muller-Sohne-b"), ("a--b..c", "a-b-c"),
        ("x.git", "x-git"), ("海賊", "adapter"), ("-", "adapter"), ("", "adapter"),
        ("a" * 59 + " b", "a" * 59), ("../../etc", "etc"),
    ],
)  # fmt: skip
def test_a_repository_is_named_after_a_run(text, name):
    assert hub.safe_name(text) == name
    hub.check_repo_id(f"me/{name}")


# --- from the command line


def test_export_and_push_leave_the_token_nowhere(fake, tmp_path, monkeypatch, caplog):
    """Nor does the hub's client where it is told to log everything."""
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_DEBUG", True)
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="huggingface_hub")
    run = finished_run(toy_folder(tmp_path / "toy"))
    arguments = ["export", run.id[:8], "--to", str(tmp_path / "out"), "--push", REPO, "--json"]
    done = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert json.loads(done.stdout)["url"] == f"{fake.url}/{REPO}"
    assert set(fake.files) == ADAPTER and fake.visibility == {REPO: "private"}
    assert fake.files == contents(tmp_path / "out", ADAPTER)
    assert "authorization: <TOKEN>" in caplog.text and TOKEN not in caplog.text + done.output
    written = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert written == []


def run_cli(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["studio", "export", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code, capsys.readouterr().err


def test_what_can_be_known_is_said_before_exporting(fake, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    run = finished_run(toy_folder(tmp_path / "toy"))
    to = ["--to", str(tmp_path / "out")]
    for arguments, sentence in [
        (["--push", "pirate"], "Name the repository as NAME/REPO"),
        (["--push", REPO], r"There is no token for the hub. Run `hf auth login`, or set HF_TOKEN"),
        (["--public"], "--public only works with --push NAME/REPO"),
    ]:
        code, text = run_cli(monkeypatch, capsys, run.id, *to, *arguments)
        assert code == 2 and re.search(sentence, text) and not (tmp_path / "out").exists()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    fake.refusals["/api/"] = 401, "Bad {token}"
    code, text = run_cli(monkeypatch, capsys, run.id, *to, "--push", REPO, "--public")
    assert code == 2 and "refuses the token" in text and f"`hf upload {REPO} {tmp_path / 'out'}` pushes it" in text
    assert TOKEN not in text and {path.name for path in (tmp_path / "out").iterdir()} == ADAPTER
