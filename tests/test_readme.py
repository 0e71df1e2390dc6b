"""The head of the README, which a Space is configured by."""

import re
from pathlib import Path

import pytest
import yaml

from studio.ui.server import sign_in

ROOT = Path(__file__).parents[1]
# https://huggingface.co/docs/hub/spaces-config-reference
KEYS = {
    "title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file", "base_path",
    "fullWidth", "header", "short_description", "models", "datasets", "tags", "thumbnail", "pinned", "license",
    "suggested_hardware", "hf_oauth", "hf_oauth_scopes", "hf_oauth_expiration_minutes", "hf_oauth_authorized_org",
    "disable_embedding", "startup_duration_timeout", "custom_headers", "preload_from_hub",
}  # fmt: skip


@pytest.fixture(scope="module")
def head() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8").split("---\n")[1]


@pytest.fixture(scope="module")
def front(head) -> dict:
    return yaml.safe_load(head)


def test_a_space_knows_every_key(front):
    assert set(front) <= KEYS
    assert (front["sdk"], front["app_file"], front["suggested_hardware"]) == ("gradio", "app.py", "cpu-basic")
    assert (ROOT / front["app_file"]).is_file()


def test_versions_are_those_that_are_tested(front, head):
    pin = re.search(r"^gradio==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert front["sdk_version"] == pin[1]
    assert re.search(r'^python_version: "3\.1[12]"$', head, re.MULTILINE), "unquoted, 3.10 would be 3.1"


def test_what_a_space_shows_and_waits_for(front):
    assert len(front["short_description"]) <= 60
    assert {"jetmoe/jetmoe-8b", "jetmoe/jetmoe-8b-chat"} <= set(front["models"])
    # The starter is fetched and built on the first start.
    assert re.fullmatch(r"\d+[mh]", front["startup_duration_timeout"])


def test_the_sign_in_that_is_used_is_declared_and_asks_for_no_more(front):
    pages = [path.read_text(encoding="utf-8") for path in (ROOT / "studio" / "ui").rglob("*.py")]
    assert any("gr.LoginButton(" in page for page in pages) and front["hf_oauth"] is True
    assert front["hf_oauth_scopes"] == [sign_in.SCOPE]
    for package in ("authlib", "itsdangerous"):
        assert re.search(f"^{package}==", (ROOT / "requirements.txt").read_text(), re.MULTILINE), package
