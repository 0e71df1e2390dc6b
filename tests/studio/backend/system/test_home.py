"""Where the studio keeps what, and a list of runs whose home is mounted storage."""

from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from studio.backend.recipe import Recipe
from studio.backend.runs.store import RunStore
from studio.backend.system import home
from studio.backend.system.process import environment
from studio.backend.training.queue import Jobs

Partition = namedtuple("Partition", "mountpoint fstype")
RECIPE = Recipe.from_settings({})


@pytest.fixture
def mount(tmp_path, monkeypatch) -> Path:
    """A folder on storage that is not this machine's, and a cache that is."""
    home.is_mounted.cache_clear()
    bucket = tmp_path / "bucket"
    parts = [Partition("/", "overlay"), Partition(str(bucket), "fuse.hf-mount")]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: parts)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("STUDIO_LOCAL", raising=False)
    yield bucket
    home.is_mounted.cache_clear()


@pytest.mark.parametrize(
    ("fstype", "mounted"),
    [("fuse.s3fs", True), ("nfs4", True), ("ext4", False), ("overlay", False), ("fuseblk", False), ("9p", True)],
)
def test_what_is_mounted(tmp_path, monkeypatch, fstype, mounted):
    home.is_mounted.cache_clear()
    monkeypatch.setattr(
        psutil, "disk_partitions", lambda all: [Partition("/", "ext4"), Partition(str(tmp_path), fstype)]
    )
    assert home.is_mounted(tmp_path / "not" / "there") == mounted
    home.is_mounted.cache_clear()


def test_only_mounted_storage_has_its_database_elsewhere(mount, tmp_path, monkeypatch):
    assert home.local(tmp_path / "home") == tmp_path / "home"
    assert home.local(mount / "home").is_relative_to(tmp_path / "cache" / "jetmoe-studio")
    assert home.local(mount / "home") != home.local(mount / "other")
    monkeypatch.setenv("STUDIO_LOCAL", str(tmp_path / "disk"))
    assert home.local(tmp_path / "home").parent == tmp_path / "disk"
    assert environment()["STUDIO_LOCAL"] == str(tmp_path / "disk"), "a trainer writes into the same database"


def test_a_new_machine_finds_the_runs_of_its_mounted_home(mount, tmp_path, monkeypatch):
    store = RunStore(mount / "home")
    copied = store.create(RECIPE, "copied", owner="hf:ann")
    store.finish(copied.id, "failed", "The disk was full.")
    store.keep_copy()
    late = store.create(RECIPE, "late", owner="hf:bob")
    late.events.append("done", 5, {"message": "Done after 5 of 5 steps."})
    assert [file.name for file in (mount / "home").glob("*sqlite3*")] == ["runs.sqlite3"], "no log, no lock"

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    again = RunStore(mount / "home")
    assert again.path != store.path
    runs = {run.name: run for run in again.list()}
    assert (runs["copied"].state, runs["copied"].message, runs["copied"].owner) == (
        "failed",
        "The disk was full.",
        "hf:ann",
    )
    assert (runs["late"].state, runs["late"].step, runs["late"].owner) == ("done", 5, "hf:bob")
    assert again.create(RECIPE, "new").id in [run.id for run in again.list()]


def test_a_server_starts_with_a_new_local_folder(mount, tmp_path, monkeypatch):
    store = RunStore(mount / "home")
    store.create(RECIPE, "kept")
    store.keep_copy()
    monkeypatch.setenv("STUDIO_LOCAL", str(tmp_path / "new" / "disk"))
    jobs = Jobs(RunStore(mount / "home"), begins=False)
    assert jobs.store.path.is_relative_to(tmp_path / "new")
    jobs.open()
    assert [run.name for run in jobs.store.list()] == ["kept"]
    jobs.close()


def test_a_damaged_copy_is_made_up_for_by_the_folders(mount, tmp_path, monkeypatch):
    store = RunStore(mount / "home")
    store.create(RECIPE, "kept")
    store.keep_copy()
    store.database.copy.write_bytes(b"no database" * 100)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    assert [run.name for run in RunStore(mount / "home").list()] == ["kept"]


def test_the_supervisor_copies_what_has_changed(mount, monkeypatch):
    monkeypatch.setattr("studio.backend.training.queue.COPY_S", 0.0)
    jobs = Jobs(RunStore(mount / "home"), begins=False)
    jobs.store.create(RECIPE, "first")
    jobs._tick()
    before = jobs.store.database.copy.stat().st_mtime_ns
    jobs._tick()
    assert jobs.store.database.copy.stat().st_mtime_ns == before
    jobs.store.create(RECIPE, "second")
    jobs._tick()
    assert jobs.store.database.copy.stat().st_mtime_ns > before
    jobs.close()


def test_a_copy_that_can_not_be_written_is_said(mount, monkeypatch):
    jobs = Jobs(RunStore(mount / "home"), begins=False)
    jobs.store.create(RECIPE)
    monkeypatch.setattr("shutil.copyfile", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    jobs._guarded(jobs._keep_copy)
    assert "The disk is full" in jobs.status()


def test_of_two_machines_with_one_mounted_home_one_supervises_and_no_run_is_lost(mount, monkeypatch, tmp_path):
    first = Jobs(RunStore(mount / "home"), begins=False)
    begun: list[str] = []
    monkeypatch.setattr(Jobs, "_begin", lambda jobs, run: begun.append(run.name))
    first.store.create(RECIPE, "of the first")
    first._guarded(first._tick)
    before = first.store.database.copy.read_bytes()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    monkeypatch.setattr("socket.gethostname", lambda: "other")
    second = Jobs(RunStore(mount / "home"))
    second.store.create(RECIPE, "of the second")
    first.store.create(RECIPE, "later")
    second._guarded(second._tick)
    assert "Another server uses the same storage" in second.status() and not begun
    assert first.store.database.copy.read_bytes() == before and first.status() == ""

    monkeypatch.setattr("studio.backend.training.queue.COPY_S", 0.0)  # the first one is gone
    second._guarded(second._tick)
    assert {run.name for run in second.store.queue()} == {"of the first", "of the second", "later"}
    assert begun == ["of the first"] and first.store.database.copy.read_bytes() != before
    first.close()
    second.close()
