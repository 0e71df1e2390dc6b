"""Uploaded files: kept while they are needed, found by their number only."""

import os

import pytest

from studio.backend.data import uploads
from studio.backend.data.rows import Limits
from studio.backend.recipe import Recipe
from studio.backend.runs.store import RunStore
from studio.errors import StudioError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_a_file_is_found_by_its_number_under_its_own_name(tmp_path, home):
    file = tmp_path / "my rows (1).csv"
    file.write_text("a,b\n1,2\n")
    upload = uploads.keep(file)
    found = uploads.find(upload)
    assert found == home / "uploads" / upload / "my_rows__1_.csv" and found.read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize("upload", ["", "..", "../../etc", "0" * 32, "A" * 32, "/etc/passwd", "0" * 31 + "\n"])
def test_other_numbers_find_nothing(upload):
    with pytest.raises(StudioError, match="Upload it again"):
        uploads.find(upload)


def test_empty_and_too_large_files_are_refused_and_leave_nothing(tmp_path, home, monkeypatch):
    file = tmp_path / "rows.csv"
    file.write_text("")
    with pytest.raises(StudioError, match="is empty"):
        uploads.keep(file)
    with file.open("wb") as sparse:
        sparse.truncate(Limits().file_bytes + 1)
    with pytest.raises(StudioError, match="Split it"):
        uploads.keep(file)
    file.write_text("a")
    monkeypatch.setattr(uploads.shutil, "copyfile", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(StudioError, match="disk is full"):
        uploads.keep(file)
    assert not [*(home / "uploads").iterdir()]


@pytest.mark.parametrize(
    "name", ["..", ".hidden.csv", "a/b.csv", "x" * 300 + ".csv", "$(id).csv", "zeile\n.csv", "表.csv"]
)
def test_names_are_made_harmless_and_keep_their_ending(name):
    clean = uploads._clean_name(name)
    assert 0 < len(clean) <= 80 and not clean.startswith(".") and not set(clean) & set("/\\$()\n")
    assert clean.endswith(".csv") or name == ".."


def test_only_old_files_that_no_run_uses_are_deleted(tmp_path, home):
    file = tmp_path / "rows.csv"
    file.write_text("a,b")
    used, unused, fresh = (uploads.keep(file) for _ in range(3))
    for upload in (used, unused):
        os.utime(home / "uploads" / upload, (0, 0))
    store = RunStore()
    store.create(Recipe(data=str(uploads.find(used))))
    uploads.clean(store)
    assert {each.name for each in (home / "uploads").iterdir()} == {used, fresh}


def test_the_same_file_of_an_owner_is_stored_once(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("a,b\n")
    first = uploads.keep(file, "user:ada")
    assert {uploads.keep(file, "user:ada") for _ in range(25)} == {first}
    assert uploads.keep(file, "user:bob") != first
    file.write_text("a,c\n")
    assert uploads.keep(file, "user:ada") != first


def test_an_owner_can_not_fill_the_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDIO_QUOTA_GIB", str(20_000 / 2**30))
    file = tmp_path / "rows.csv"
    for i in range(9):
        file.write_text(f"{i}" * 1000)
        uploads.keep(file, "user:ada")
    file.write_text("x" * 1000)
    with pytest.raises(StudioError, match="your part of the quota"):
        uploads.keep(file, "user:ada")
    assert uploads.keep(file, "user:bob") and uploads.keep(file)


def test_a_damaged_owner_hides_one_upload_only(tmp_path, home):
    file = tmp_path / "rows.csv"
    file.write_text("a,b\n")
    damaged, whole = uploads.keep(file, "user:ada"), uploads.keep(file, "user:bob")
    (home / "uploads" / damaged / uploads.OWNER).write_bytes(b"\xff")
    assert uploads.find(whole, "user:bob") and uploads.find(damaged)
    with pytest.raises(StudioError, match="Upload it again"):
        uploads.find(damaged, "user:ada")
    assert uploads.keep(file, "user:ada") != damaged
    uploads.transfer_owner("user:bob", "hf:bob")
    assert uploads.find(whole, "hf:bob")
