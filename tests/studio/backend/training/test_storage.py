"""What an owner has stored: listed with its size, and deleted by its owner only."""

import json

import pytest

from studio.backend.data import uploads
from studio.backend.recipe import Recipe
from studio.backend.training import storage
from studio.backend.training.queue import Jobs
from studio.errors import StudioError

ADAPTER = "a" * 32


@pytest.fixture
def jobs(tmp_path, monkeypatch) -> Jobs:
    """Ada has a run with its data, another file and an adapter; Bob has a run."""
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    jobs = Jobs()
    for name, size in (("used.csv", 3_000), ("other.csv", 2_000)):
        (tmp_path / name).write_text("x" * size)
    data = uploads.find(uploads.keep(tmp_path / "used.csv", "user:ada"))
    uploads.keep(tmp_path / "other.csv", "user:ada")
    jobs.start(Recipe(data=str(data)), "mine", "user:ada")
    jobs.start(Recipe(), "theirs", "user:bob")
    folder = jobs.store.home / "adapters" / ADAPTER
    folder.mkdir(parents=True)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (folder / name).write_text("{}")
    about = {"name": "pirate", "model": "starter", "created": 1.0, "sha256": "", "owner": "user:ada"}
    (folder / "about.json").write_text(json.dumps(about))
    return jobs


def keys(jobs: Jobs, owner: str = "user:ada") -> dict[str, str]:
    return {item.name: item.key for item in storage.stored(jobs.store, owner)}


def test_an_owner_sees_everything_of_their_own(jobs):
    found = storage.stored(jobs.store, "user:ada")
    assert {(item.kind, item.name) for item in found} == {
        ("run", "mine"), ("file", "used.csv"), ("file", "other.csv"), ("adapter", "pirate"),
    }  # fmt: skip
    assert [item.bytes for item in found] == sorted((item.bytes for item in found), reverse=True)
    assert [*keys(jobs, "user:bob")] == ["theirs"] and len(keys(jobs, "")) == 5


def test_everything_can_be_deleted_data_after_its_run(jobs):
    found = keys(jobs)
    with pytest.raises(StudioError, match="Delete the run first"):
        storage.delete(jobs, found["used.csv"], "user:ada")
    for name in ("mine", "used.csv", "other.csv", "pirate"):
        assert f"“{name}” was deleted" in storage.delete(jobs, found[name], "user:ada")
    assert not keys(jobs) and [*keys(jobs, "user:bob")] == ["theirs"]


@pytest.mark.parametrize("name", ["mine", "other.csv", "pirate"])
def test_nobody_deletes_the_things_of_others(jobs, name):
    with pytest.raises(StudioError):
        storage.delete(jobs, keys(jobs)[name], "user:bob")
    assert name in keys(jobs)


@pytest.mark.parametrize("key", [None, "", "run:", "file:../..", "file:" + "f" * 32, "adapter:x", "x:y", ["run:1"], 3])
def test_other_keys_delete_nothing(jobs, key):
    with pytest.raises(StudioError):
        storage.delete(jobs, key, "user:ada")
    assert len(keys(jobs)) == 4
