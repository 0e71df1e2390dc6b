"""What a list of runs is restored from, whatever has happened to the database, the folders and the disk."""

import json
import os
import shutil
import sqlite3
import subprocess
from contextlib import suppress

import pytest

from studio.backend.recipe import Recipe
from studio.backend.runs.database import RESERVE
from studio.backend.runs.store import RunStore
from studio.backend.training.queue import Jobs
from studio.errors import StudioError

TEXT = "\ud800"


@pytest.fixture
def store(tmp_path, monkeypatch) -> RunStore:
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    return RunStore()


def fill(store: RunStore) -> None:
    """One run of each state, and two in the queue in the order in which they were resumed."""
    for name in ("done", "failed", "interrupted", "running", "cancelled", "queued first", "queued last"):
        run = store.create(Recipe(), name, owner="user:ada")
        if name == "running":
            store.mark_running(run.id)
            store.request_cancel(run.id)
        elif name in ("done", "failed", "interrupted"):
            store.mark_running(run.id)
            store.finish(run.id, name, f"It is {name}.")
        elif name == "cancelled":
            store.request_cancel(run.id)
    first = store.queue()[0]
    store.request_cancel(first.id)
    store.resume(first.id)


def lose(store: RunStore, how: str) -> None:
    for suffix in ("", "-wal", "-shm"):
        store.path.with_name(store.path.name + suffix).unlink(missing_ok=True)
    if how == "empty":
        store.path.touch()
    if how == "without rows":
        RunStore(store.home.parent / "other").list()
        shutil.copy(store.home.parent / "other" / store.path.name, store.path)


@pytest.mark.parametrize("how", ["missing", "empty", "without rows"])
def test_a_lost_list_is_restored_with_its_queue_and_cancels(store, how):
    fill(store)
    before = store.list()
    lose(store, how)
    assert "7 runs" in store.repair()
    assert sorted(store.list(), key=lambda run: run.id) == sorted(before, key=lambda run: run.id)
    assert [run.name for run in store.queue()] == ["queued last", "queued first"]
    assert store.repair() == ""


@pytest.mark.parametrize("how", ["missing", "empty"])
def test_a_lost_list_is_restored_without_a_restart(store, how):
    run = store.create(Recipe(), "kept")
    lose(store, how)
    assert [each.id for each in store.list()] == [run.id]
    assert sqlite3.connect(store.path).execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize(
    "record",
    [
        b"[]", b"3", b"", b"\xff", b'{"created": 1e999}', b"[" * 100_000, json.dumps({"name": TEXT}).encode(),
        *(
            json.dumps({name: odd}).encode()
            for name in ("name", "created", "pid", "state", "queued", "owner", "shared")
            for odd in (None, [], {"a": 1}, -1e300, "odd", 2**70)
        ),
    ],
)  # fmt: skip
def test_an_odd_record_hides_no_run(store, record):
    odd, other = store.create(Recipe()), store.create(Recipe(), "other")
    (odd.folder / "run.json").write_bytes(record)
    lose(store, "missing")
    assert {run.id for run in store.list()} == {odd.id, other.id} and store.get(other.id).name == "other"
    Jobs(store, begins=False)._tick()


@pytest.mark.parametrize(
    "line",
    [
        b"[]", b"null", b'{"seq": "1", "step": 0, "kind": "log", "values": {}}', b"[" * 100_000,
        b'{"seq": 2, "step": 99999999999999999999999, "kind": "eval", "values": {"eval_loss": 1}}',
        b'{"seq": 2, "step": 3, "kind": "eval", "values": {"eval_loss": "low"}}',
        b'{"seq": 2, "step": 3, "kind": "done", "values": []}', b'{"seq": 2, "step": 3, "kind": [], "values": {}}',
    ],
)  # fmt: skip
def test_an_odd_event_hides_no_run(store, line):
    run = store.create(Recipe())
    run.events.append("eval", 2, {"eval_loss": 2.5})
    with run.events.path.open("ab") as file:
        file.write(line + b"\n")
    lose(store, "missing")
    assert store.get(run.id).best_eval_loss == 2.5
    assert run.events.append("log", 4, {}).seq > 1


def test_a_finished_run_without_its_recipe_stays_in_the_list(store):
    run = store.create(Recipe(model="starter", data="identity"), "mine")
    store.finish(run.id, "done", "Done.")
    (run.folder / "recipe.yaml").write_bytes(b"")
    lose(store, "missing")
    again = store.get(run.id)
    assert (again.name, again.state, again.model, again.data) == ("mine", "done", "starter", "identity")
    store.delete(run.id)
    assert store.list() == [] and store.repair() == ""


def test_a_failed_repair_does_not_end_the_supervisor(store, monkeypatch):
    store.create(Recipe())
    jobs = Jobs(store, begins=False)
    store.path.write_bytes(b"not a database, " * 64)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        jobs._guarded(jobs._tick)
    jobs._guarded(jobs._tick)
    assert "rebuilt from the folders of 1 runs" in jobs.status()
    jobs.close()


def test_what_can_not_be_deleted_stays_in_the_list(store, monkeypatch):
    run = store.create(Recipe())
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda folder: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(StudioError, match="can't be deleted"):
            store.delete(run.id)
    assert [each.id for each in store.list()] == [run.id]


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """A store on a disk of 12 MiB, and a function that fills it to the last byte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    monkeypatch.setenv("STUDIO_HOME", str(folder / "home"))

    def full() -> None:
        for size in (2**16, 1):
            with suppress(OSError), (folder / f"fill {size}").open("wb", 0) as file:
                while True:
                    file.write(b"x" * size)

    yield RunStore(), full
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_and_runs_can_be_listed_cancelled_and_deleted(small_disk):
    store, full = small_disk
    running, other = store.create(Recipe()), store.create(Recipe())
    store.mark_running(running.id)
    full()
    assert len(store.list()) == 2 and store.request_cancel(running.id).cancel_requested
    full()  # what the reserve gave is used up too
    store.delete(other.id)
    jobs = Jobs(store, begins=False)
    jobs.open()
    jobs.close()
    assert [run.id for run in store.list()] == [running.id]
    full()
    with pytest.raises(StudioError, match=r"disk is full.*MiB"):
        for _ in range(9):
            store.create(Recipe())


def test_the_reserve_is_filled_again_so_that_nothing_else_uses_it_up(small_disk):
    store, full = small_disk
    for _ in range(2):
        store.list()
        assert store.path.with_name(RESERVE).stat().st_size == 2**20
        full()
