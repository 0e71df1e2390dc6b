"""The store of runs: its life cycle, several processes at once, and what a person may do to its files."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from studio.backend.recipe import Recipe
from studio.backend.runs import store as runs
from studio.backend.runs.comparison import compare, differences
from studio.backend.runs.events import TrainEvent, figures
from studio.backend.runs.store import RunStore
from studio.errors import StudioError
from tests.builders.waiting import until

CHILD = """
import sys
from studio.backend.recipe import Recipe
from studio.backend.runs.store import RunStore
store = RunStore()
sys.stdin.readline()
for step in range(20):
    run = store.create(Recipe(), name=f"{sys.argv[1]} {step}")
    store.mark_running(run.id)
    store.update(run.id, step=step)
    store.finish(run.id, "done")
"""


@pytest.fixture
def store(tmp_path, monkeypatch) -> RunStore:
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    return RunStore()


@pytest.fixture
def child():
    """A live process of our own; its parent is this one."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()


def test_the_life_of_a_run(store):
    recipe = Recipe(data="identity", r=8)
    run = store.create(recipe, " first ")
    assert (run.name, run.state, run.data, run.started) == ("first", "queued", "identity", None)
    assert run.recipe() == recipe and run.folder == store.home / "runs" / run.id
    running = store.mark_running(run.id)
    assert (running.state, running.pid) == ("running", os.getpid())
    assert running.pid_created == pytest.approx(psutil.Process().create_time() - psutil.boot_time(), abs=2)
    store.update(run.id, step=20, best_eval_loss=1.5)
    store.update(run.id, step=21, message="half way")
    now = store.get(run.id)
    assert (now.step, now.best_eval_loss, now.message) == (21, 1.5, "half way")
    done = store.finish(run.id, "done")
    assert done.state == "done" and done.ended >= done.started >= done.created
    assert store.list() == [done] and json.dumps(done.row())


def test_the_latest_run_is_first_and_has_a_name_of_its_own(store):
    first, second = store.create(Recipe(preset="experts+moa")), store.create(Recipe())
    assert [run.id for run in store.list()] == [second.id, first.id]
    assert first.name == f"experts+moa {first.id[:8]}"


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", "a\nb", "\x1b[31m", "x" * 81])
def test_names_that_are_none_are_refused(store, name):
    with pytest.raises(StudioError, match="printable characters"):
        store.create(Recipe(), name)
    assert store.list() == []


def test_the_data_file_is_found_from_any_folder_later(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("a,b")
    assert store.create(Recipe(data="rows.csv")).recipe().data == str(tmp_path / "rows.csv")


def test_a_prefix_is_enough_where_only_one_run_has_it(store):
    ids = [store.create(Recipe()).id for _ in range(20)]
    for run_id in ids:
        assert store.get(run_id).id == store.get(run_id[:14]).id == run_id
    first = next(digit for digit in "0123456789abcdef" if sum(run_id.startswith(digit) for run_id in ids) > 1)
    with pytest.raises(StudioError, match="Several run ids start with"):
        store.get(first)
    store.update(ids[0][:14], step=3)
    assert store.finish(ids[0][:14], "failed").step == 3


@pytest.mark.parametrize("run_id", ["", "../..", "%", "_", "' OR 1=1 --", "A" * 8, "\0", "a" * 37, "abc\n", "éa"])
def test_hostile_ids_are_refused(store, run_id):
    store.create(Recipe())
    for act in (store.get, store.delete, store.request_cancel, store.resume, store.mark_running, store.update):
        with pytest.raises(StudioError, match="is not a run id"):
            act(run_id)
    assert len(store.list()) == 1


def test_an_unknown_id_is_said_so(store):
    with pytest.raises(StudioError, match="There is no run 123"):
        store.get("123")


def test_a_run_starts_once(store, child):
    run = store.create(Recipe())
    store.mark_running(run.id, child.pid)
    assert store.mark_running(run.id, child.pid).pid == child.pid
    with pytest.raises(StudioError, match="is running, not queued"):
        store.mark_running(run.id)


def test_a_process_that_died_at_once_does_not_start(store, child):
    run = store.create(Recipe())
    child.kill()
    until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
    with pytest.raises(StudioError, match="ended at once"):
        store.mark_running(run.id, child.pid)
    child.wait()
    with pytest.raises(StudioError, match="ended at once"):
        store.mark_running(run.id, child.pid)
    assert store.get(run.id).state == "queued"


def test_reconcile_finds_dead_processes_and_spares_live_ones(store, child):
    alive, dead, reused = (store.create(Recipe()).id for _ in range(3))
    store.mark_running(alive)
    store.mark_running(dead, child.pid)
    store.mark_running(reused)
    with sqlite3.connect(store.path) as db:  # this number once belonged to an older process
        db.execute("UPDATE runs SET pid_created = pid_created - 100 WHERE id = ?", (reused,))
    child.kill()
    child.wait()
    assert {run.id for run in store.reconcile()} == {dead, reused} and store.reconcile() == []
    assert store.get(alive).state == "running"
    run = store.get(dead)
    assert run.state == "interrupted" and "can be resumed" in run.message and run.ended


def test_a_dead_run_ended_when_it_last_wrote_something(store, child):
    run = store.create(Recipe())
    store.mark_running(run.id, child.pid)
    with sqlite3.connect(store.path) as db:
        db.execute("UPDATE runs SET started = 1000 WHERE id = ?", (run.id,))
    run.events.append("log", 1, {})
    os.utime(run.events.path, (2000, 2000))
    child.kill()
    child.wait()
    (dead,) = store.reconcile()
    assert (dead.started, dead.ended) == (1000, 2000)


def test_the_first_word_on_the_end_holds_but_a_guess_does_not(store):
    run = store.create(Recipe())
    store.mark_running(run.id)
    store.finish(run.id, "interrupted", "it looks dead")
    assert store.finish(run.id, "failed", "out of memory").message == "out of memory"
    assert store.finish(run.id, "done").state == "failed"


def test_cancel(store):
    queued, running, ended = (store.create(Recipe()).id for _ in range(3))
    store.mark_running(running)
    store.finish(ended, "done")
    assert store.request_cancel(queued).state == "cancelled"
    with pytest.raises(StudioError, match="is cancelled, not queued"):
        store.mark_running(queued)
    assert not store.cancel_requested(running)
    assert store.request_cancel(running).state == "running" and store.cancel_requested(running)
    with pytest.raises(StudioError, match="nothing left to cancel"):
        store.request_cancel(ended)


def test_resume(store):
    run = store.create(Recipe())
    store.mark_running(run.id)
    store.update(run.id, step=7)
    with pytest.raises(StudioError, match="only runs that ended early"):
        store.resume(run.id)
    store.request_cancel(run.id)
    store.finish(run.id, "cancelled")
    again = store.resume(run.id)
    assert (again.state, again.step, again.ended, again.cancel_requested) == ("queued", 7, None, False)
    store.finish(run.id, "done")
    with pytest.raises(StudioError, match="only runs that ended early"):
        store.resume(run.id)


def test_a_killed_run_is_resumed_though_nobody_has_noticed(store, child):
    run = store.create(Recipe())
    store.mark_running(run.id, child.pid)
    child.kill()
    child.wait()
    assert store.resume(run.id).state == "queued"


def test_delete(store):
    run = store.create(Recipe())
    other = store.create(Recipe())
    store.mark_running(run.id)
    with pytest.raises(StudioError, match="Cancel it first"):
        store.delete(run.id)
    assert run.folder_exists
    store.finish(run.id, "failed")
    store.delete(run.id)
    assert not run.folder.exists() and store.list() == [other] and other.folder_exists


def test_a_folder_deleted_by_hand_is_said_so_and_the_row_can_go(store):
    run = store.create(Recipe())
    shutil.rmtree(run.folder)
    assert not store.get(run.id).folder_exists and not run.row()["folder_exists"]
    assert list(run.events.read()) == []
    for act in (run.recipe, lambda: store.resume(run.id)):
        with pytest.raises(StudioError, match=r"files of run .* are gone"):
            act()
    store.delete(run.id)
    assert store.list() == []


def test_two_processes_write_at_once(store):
    children = [
        subprocess.Popen([sys.executable, "-c", CHILD, name], stdin=subprocess.PIPE, text=True, env=os.environ)
        for name in "ab"
    ]
    for process in children:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in children:
        process.communicate()
    assert [process.returncode for process in children] == [0, 0]
    assert {run.name for run in store.list()} == {f"{name} {step}" for name in "ab" for step in range(20)}
    assert {run.state for run in store.list()} == {"done"}


def test_many_threads_make_the_first_database_together(store):
    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(lambda _: RunStore().create(Recipe()).id, range(32)))
    assert {run.id for run in store.list()} == ids
    assert sqlite3.connect(store.path).execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize("damage", [b"not a database, " * 64, "header"])
def test_a_damaged_database_is_said_so_and_kept(store, damage):
    run = store.create(Recipe())
    content = store.path.read_bytes()
    content = damage if isinstance(damage, bytes) else content[:100] + b"\xff" * (len(content) - 100)
    store.path.write_bytes(content)
    with pytest.raises(StudioError, match="is damaged"):
        store.list()
    with pytest.raises(StudioError, match="is damaged"):
        store.create(Recipe())
    assert store.path.read_bytes() == content and run.folder_exists


def test_a_damaged_database_is_kept_aside_and_made_again_from_the_folders(store):
    done, alive, waiting = (store.create(Recipe(r=r), f"rank {r}") for r in (1, 2, 3))
    store.mark_running(done.id)
    done.events.append("eval", 5, {"eval_loss": 2.5})
    done.events.append("done", 7, {"message": "Done after 7 of 7 steps."})
    store.mark_running(alive.id)
    before = store.get(alive.id)
    (store.home / "runs" / "not-a-run").mkdir()
    (waiting.folder / "run.json").write_text("{")
    assert store.repair() == ""
    store.path.write_bytes(b"not a database, " * 64)
    assert "rebuilt from the folders of 3 runs" in store.repair()
    assert next(store.home.glob("runs.sqlite3.damaged-*")).read_bytes() == b"not a database, " * 64
    again = store.get(done.id)
    assert (again.name, again.state, again.step, again.best_eval_loss) == ("rank 1", "done", 7, 2.5)
    assert again.message == "Done after 7 of 7 steps." and again.recipe().r == 1
    assert store.get(alive.id) == before
    assert store.get(waiting.id).state == "interrupted" and store.reconcile() == []
    assert store.repair() == "" and store.create(Recipe()).queued > before.queued


def test_who_died_after_its_last_word_has_ended_as_it_said(store, child):
    run = store.create(Recipe())
    store.mark_running(run.id, child.pid)
    run.events.append("done", 3, {"message": "Done after 3 of 3 steps."})
    child.kill()
    child.wait()
    store.reconcile()
    assert (store.get(run.id).state, store.get(run.id).message) == ("done", "Done after 3 of 3 steps.")


def test_resuming_a_queued_run_leaves_its_place(store):
    first, second = store.create(Recipe()), store.create(Recipe())
    with pytest.raises(StudioError, match="only"):
        store.resume(first.id)
    assert [run.id for run in store.queue()] == [first.id, second.id]


def test_the_queue_goes_by_who_asked_first_whatever_the_clock_says(store, monkeypatch):
    first = store.create(Recipe())
    monkeypatch.setattr(runs.time, "time", lambda: first.created - 1e6)
    second = store.create(Recipe())
    assert [run.id for run in store.queue()] == [first.id, second.id]
    assert [run.id for run in store.list()] == [second.id, first.id]
    store.mark_running(first.id)
    store.finish(first.id, "failed")
    store.resume(first.id)
    assert [run.id for run in store.queue()] == [second.id, first.id]


def test_a_run_that_begins_here_is_never_in_the_queue(store):
    run = store.create(Recipe(), begin=True)
    assert (run.state, run.pid) == ("running", os.getpid()) and not store.queue()
    store.finish(run.id, "interrupted")
    assert store.resume(run.id, begin=True).state == "running"


def test_a_database_of_the_first_version_gets_an_order(store):
    ids = [store.create(Recipe()).id for _ in range(2)]
    with sqlite3.connect(store.path) as db:
        for column in ("queued", "owner", "shared", "notes"):
            db.execute(f"ALTER TABLE runs DROP COLUMN {column}")
        db.execute("PRAGMA user_version = 1")
    assert [run.id for run in store.queue()] == ids


def test_the_runs_of_a_database_without_owners_are_nobodys(store):
    run = store.create(Recipe(), "old")
    with sqlite3.connect(store.path) as db:
        for column in ("owner", "shared", "notes"):
            db.execute(f"ALTER TABLE runs DROP COLUMN {column}")
        db.execute("PRAGMA user_version = 2")
    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(lambda _: store.get(run.id).owner, range(8))] == [""] * 8
    assert not store.list("anon:a") and not store.get(run.id).shared
    assert store.create(Recipe(), owner="anon:a").owner == "anon:a"


def test_a_database_without_notes_gets_them(store):
    run = store.create(Recipe(), "old")
    with sqlite3.connect(store.path) as db:
        db.execute("ALTER TABLE runs DROP COLUMN notes")
        db.execute("PRAGMA user_version = 3")
    assert store.get(run.id).notes == ""
    assert store.describe(run.id, "old", "fits").notes == "fits"


def test_a_run_is_renamed_and_annotated(store):
    run = store.create(Recipe(), "before")
    now = store.describe(run.id, " after ", "lower rate\nnext time \n\0")
    assert (now.name, now.notes) == ("after", "lower rate\nnext time")
    for name, notes in (("", ""), ("a/b", ""), ("x" * 81, ""), ("fine", "x" * 10_001)):
        with pytest.raises(StudioError):
            store.describe(run.id, name, notes)
    store.path.write_bytes(b"no database at all" * 100)
    assert store.repair()
    assert (store.get(run.id).name, store.get(run.id).notes) == ("after", "lower rate\nnext time")


def test_an_owner_finds_only_their_own_runs(store):
    mine, other = store.create(Recipe(), "mine", owner="user:ada"), store.create(Recipe(), "other", owner="user:bob")
    assert [run.id for run in store.list("user:ada")] == [mine.id] and len(store.list()) == 2
    assert store.get(mine.id[:8], "user:ada").name == "mine" and store.get(other.id).owner == "user:bob"
    messages = set()
    for run_id in (other.id, "0" * 36):
        with pytest.raises(StudioError) as caught:
            store.get(run_id, "user:ada")
        messages.add(str(caught.value).replace(run_id, "ID"))
    assert len(messages) == 1, "that somebody else has it is not told"


def test_owners_outlive_a_damaged_database(store):
    run = store.create(Recipe(), "mine", owner="user:ada")
    store.share(run.id)
    store.path.write_bytes(b"no database at all" * 100)
    assert store.repair()
    again = store.get(run.id, "user:ada")
    assert (again.name, again.owner, again.shared) == ("mine", "user:ada", True)
    assert not store.share(run.id, False).shared


def test_a_locked_database_is_said_so(store):
    run, hasty = store.create(Recipe()), RunStore(busy_s=0.1)
    with sqlite3.connect(store.path) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StudioError, match="locked"):
            hasty.update(run.id, step=1)
    store.update(run.id, step=1)
    assert store.get(run.id).step == 1


def test_a_database_of_a_newer_studio_is_left_alone(store):
    store.create(Recipe())
    with sqlite3.connect(store.path) as db:
        db.execute("PRAGMA user_version = 5")
    with pytest.raises(StudioError, match="newer studio"):
        store.list()


def test_a_home_that_can_not_be_is_said_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StudioError, match="can't be written"):
        RunStore(tmp_path / "file" / "home").list()


def test_a_database_that_can_not_be_opened_is_said_so(store):
    store.path.mkdir(parents=True)
    with pytest.raises(StudioError, match="can't be read and written"):
        store.list()


def test_a_bug_stays_a_bug(store):
    with pytest.raises(sqlite3.OperationalError, match="no such column"), store._open() as db:
        db.execute("SELECT missing FROM runs")


def test_compare_shows_what_differs_and_the_figures(store):
    first, second = store.create(Recipe(r=8), "small"), store.create(Recipe(r=16, seed=1))
    first.events.append("log", 1, {"loss": 2.0, "note": "text"})
    first.events.append("eval", 1, {"eval_loss": 1.5})
    comparison = compare([first, second])
    assert comparison["settings"] == {"r": {first.id: 8, second.id: 16}, "seed": {first.id: 0, second.id: 1}}
    assert comparison["figures"]["eval_loss"] == {first.id: 1.5, second.id: None}
    assert [run["name"] for run in comparison["runs"]] == ["small", second.name]
    with pytest.raises(StudioError, match="at least two different runs"):
        compare([first, first])


def test_figures_are_the_last_and_the_best():
    losses = [3.0, 1.0, None, 2.0]
    events = [TrainEvent(seq, 10 * seq, "eval", {"eval_loss": loss}) for seq, loss in enumerate(losses, 1)]
    events += [TrainEvent(5, 50, "log", {"loss": 0.5, "flag": True}), TrainEvent(6, 60, "done", {"loss": 9.0})]
    assert figures(events) == {"step": 50, "eval_loss": 2.0, "best_eval_loss": 1.0, "loss": 0.5}
    assert figures([]) == {}


def test_recipes_that_agree_do_not_differ():
    assert differences({"a": Recipe(), "b": Recipe()}) == {}
