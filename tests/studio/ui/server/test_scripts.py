"""The page's JavaScript over HTTP: every module at an address that never changes, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urljoin

import gradio as gr
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.testclient import TestClient

from studio.ui.server import scripts
from studio.ui.server.headers import HEADERS, SafeHeaders

UI = Path(scripts.__file__).parents[1]
ENTRIES = ("finetune/runs/runs.js", "routing/panel/panel.js", "classify/evaluation/evaluation.js")


@pytest.fixture
def client() -> TestClient:
    return TestClient(Starlette(routes=scripts.routes(), middleware=[Middleware(SafeHeaders)]))


def address(module: str) -> str:
    return f"/scripts/{scripts.digest()}/{module}"


def test_every_module_is_served_to_be_cached_forever(client):
    files = sorted(UI.rglob("*.js"))
    assert len(files) > 30
    for file in files:
        answer = client.get(address(file.relative_to(UI).as_posix()))
        assert answer.status_code == 200 and answer.content == file.read_bytes()
        assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert HEADERS.items() <= {name: answer.headers.get(name) for name in HEADERS}.items()


@pytest.mark.parametrize(
    "path",
    [
        "/scripts/{digest}/finetune/runs/runs.css",
        "/scripts/{digest}/finetune/runs/runs_panel.py",
        "/scripts/{digest}/finetune/runs/",
        "/scripts/{digest}/finetune/%2e%2e/common/dom.js",
        "/scripts/{digest}/%2e%2e/%2e%2e/%2e%2e/package.json",
        "/scripts/{digest}//etc/passwd",
        "/scripts/{digest}/common/dom.js%00",
        "/scripts/0123456789abcdef/common/dom.js",
        "/scripts/common/dom.js",
        "/scripts/",
    ],
)
def test_nothing_else_is_served(client, path):
    # The client would resolve and escape a path itself.
    answer = client.request("GET", client.base_url.copy_with(raw_path=path.format(digest=scripts.digest()).encode()))
    assert answer.status_code == 404 and answer.headers["cache-control"] == "no-store"


def test_every_import_of_every_module_is_served(client):
    """As a browser resolves it, from any root path."""
    for file in UI.rglob("*.js"):
        here = f"http://testserver{address(file.relative_to(UI).as_posix())}"
        for name in re.findall(r'\bfrom "(.+)";$', file.read_text(), re.MULTILINE):
            assert name.startswith("."), "an import without a path needs a map"
            assert client.get(urljoin(here, name)).status_code == 200, f"{file.name} imports {name}"


def test_a_change_of_any_module_changes_every_address(monkeypatch):
    files = scripts._files()
    digests = {scripts.digest()}
    for path, text in [("common/dom.js", b"//"), ("new.js", b""), (next(iter(files)), b"")]:
        monkeypatch.setattr(scripts, "_files", lambda path=path, text=text: files | {path: text})
        digests.add(scripts.digest.__wrapped__())
    assert len(digests) == 4


def test_mounting_imports_its_module_relative_to_the_page():
    code = scripts.mounting("routing/panel/panel.js", events=("pick", "compare"), views=["a", "b"])
    assert f'new URL("scripts/{scripts.digest()}/routing/panel/panel.js", document.baseURI)' in code
    assert '{"views": ["a", "b"]}' in code
    with pytest.raises(KeyError):
        scripts.mounting("routing/panel/other.js")


def test_gradio_finds_the_events_in_the_code():
    with gr.Blocks():
        panel = gr.HTML(js_on_load=scripts.mounting(ENTRIES[0], events=("act", "open")))
        panel.act(lambda: None)
        panel.open(lambda: None)
        with pytest.raises(AttributeError):
            _ = panel.pick


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_exports_mount(entry):
    assert re.search(r"^export (async )?function mount\(", (UI / entry).read_text(), re.MULTILINE)


def test_no_module_makes_markup_or_code_or_loads_from_elsewhere():
    for file in UI.rglob("*.js"):
        text = file.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|Function\(|\beval\(", text), file
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), file
