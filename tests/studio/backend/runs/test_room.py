"""One quota over runs, uploads, results and adapters, and a part of it for each owner."""

import json

import pytest

from studio.backend.data import uploads
from studio.backend.recipe import Recipe
from studio.backend.runs.room import ABOUT, GIB, owned, require_room
from studio.backend.runs.store import RunStore
from studio.errors import StudioError

KINDS = ("a run", "an upload", "a result", "an adapter")


@pytest.fixture
def store(tmp_path, monkeypatch) -> RunStore:
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    return RunStore()


def make(store: RunStore, kind: str, owner: str, size: int = 10_000) -> None:
    match kind:
        case "a run":
            folder = store.create(Recipe(), owner=owner).folder
        case "an adapter":
            folder = store.home / "adapters" / ("a" * 32)
            folder.mkdir(parents=True)
            (folder / ABOUT).write_text(json.dumps({"owner": owner}))
        case _:
            folder = uploads.new_folder(owner)
    (folder / "file").write_bytes(b"x" * size)


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_an_owner_stores_counts(store, kind, monkeypatch):
    make(store, kind, "user:ada")
    monkeypatch.setenv("STUDIO_QUOTA_GIB", str(18_000 / GIB))
    with pytest.raises(StudioError, match="your part of the quota"):
        require_room(store, "user:ada")
    require_room(store, "user:bob")
    require_room(store)  # a studio for one person
    with pytest.raises(StudioError, match="runs, uploads and adapters would use"):
        require_room(store, "user:bob", 9_000)
    assert len(owned(store, "user:ada")) == 1 and not owned(store, "user:bob")


def test_many_owners_can_not_fill_the_disk(store, monkeypatch):
    monkeypatch.setenv("STUDIO_QUOTA_GIB", str(40_000 / GIB))
    for number in range(3):
        make(store, KINDS[number], f"anon:{number}")
    with pytest.raises(StudioError, match="the quota is"):
        require_room(store, "anon:4", 10_000)


def test_a_quota_that_is_no_number_is_refused(store, monkeypatch):
    monkeypatch.setenv("STUDIO_QUOTA_GIB", "much")
    with pytest.raises(StudioError, match="must be a number of GiB"):
        require_room(store)
