"""Small files that others, or a crash, have damaged."""

import pytest

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
