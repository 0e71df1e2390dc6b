"""Small files that others, or a crash, have damaged."""

import os

import pytest

from studio.backend.data import uploads
from studio.backend.recipe import Recipe
from studio.backend.runs.store import RunStore
from studio.backend.system.files import read_json

DAMAGED = (b"", b"{", b"\xff\xfe{}", b"[]", b"null", b'"text"', b"[" * 100_000, b"\x00" * 40)


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_is_no_object(tmp_path, content):
    file = tmp_path / "about.json"
    file.write_bytes(content)
    assert read_json(file) is None


def test_a_missing_file_and_a_folder_are_no_objects(tmp_path):
    assert read_json(tmp_path / "missing") is None and read_json(tmp_path) is None


def test_an_object_is_returned(tmp_path):
    file = tmp_path / "about.json"
    file.write_text('{"name": "ä"}', encoding="utf-8")
    assert read_json(file) == {"name": "ä"}


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such permissions")
def test_folders_of_an_older_home_are_closed_to_other_accounts(tmp_path, monkeypatch):
    home = tmp_path / "home"
    monkeypatch.setenv("STUDIO_HOME", str(home))
    for name in ("runs", "uploads"):
        (home / name).mkdir(mode=0o755, parents=True)
    RunStore().create(Recipe())
    uploads.new_folder("user:ada")
    assert {oct((home / name).stat().st_mode & 0o777) for name in ("runs", "uploads")} == {"0o700"}
