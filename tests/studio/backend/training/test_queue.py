"""The queue and its supervisor, with a stand-in for the trainer; `tests/e2e/test_finetune.py` has the real one."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import psutil
import pytest

from studio.backend.data import uploads
from studio.backend.recipe import Recipe
from studio.backend.runs.run import is_alive
from studio.backend.runs.store import RunStore
from studio.backend.system import process as child
from studio.backend.training import queue as jobs
from studio.backend.training.queue import Jobs
from studio.errors import StudioError
from tests.builders.waiting import until

# Works until it is cancelled, or as its preset says; deaf to signals but SIGKILL where it is "hot".
TRAINER = """
import os, signal, sys, time
from studio.backend.runs.store import RunStore
store = RunStore()
run = store.mark_running(sys.argv[1])
recipe = run.recipe()
if recipe.preset == "hot":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if recipe.preset == "router":
    print("a line", "x" * 10_000_000, sep="\\n", flush=True)
    print("RuntimeError: the last line")
    sys.exit(1)
step = 0
while recipe.preset in ("all", "hot"):
    step += 1
    store.update(run.id, step=step)
    if recipe.preset == "all" and store.cancel_requested(run.id):
        run.events.append("cancelled", step, {"message": "Cancelled after a step."})
        store.finish(run.id, "cancelled", "Cancelled after a step.")
        sys.exit()
    time.sleep(0.02)
run.events.append("done", 5, {"message": "Done."})
store.finish(run.id, "done", "Done.")
"""


@pytest.fixture
def store(tmp_path, monkeypatch) -> RunStore:
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(jobs, "POLL_S", 0.05)
    monkeypatch.setattr(child, "NICENESS", 0)  # other workers keep the processor busy
    return RunStore()


@pytest.fixture
def supervise(store):
    """Makes supervisors whose trainer is the stand-in; whatever still works is ended."""
    opened: list[Jobs] = []

    def make(step_s: float = 30.0, end_s: float = 10.0) -> Jobs:
        opened.append(Jobs(store, ["-c", TRAINER], step_s, end_s))
        opened[-1].open()
        return opened[-1]

    yield make
    for each in opened:
        each.close()
    for run in store.list():
        if is_alive(run):
            child.end_group(run.pid, signal.SIGKILL)
    # Whose parent did not look is a zombie of this process.
    for each in opened:
        for process in each._children.values():
            process.wait()


def until_state(store: RunStore, run_id: str, state: str):
    return until(lambda: (run := store.get(run_id)).state == state and run)


def test_a_second_run_waits_for_the_first_and_sees_its_place(store, supervise):
    queue = supervise()
    first = queue.start(Recipe(), "first")
    until_state(store, first.id, "running")
    second, third = queue.start(Recipe(preset="attention"), "second"), queue.start(Recipe(preset="attention"))
    assert [queue.place(run.id) for run in (first, second, third)] == [0, 1, 2]
    assert queue.training().id == first.id and store.get(second.id).state == "queued"
    queue.cancel(third.id)
    assert store.get(third.id).state == "cancelled" and queue.place(third.id) == 0
    queue.cancel(first.id)
    assert until_state(store, first.id, "cancelled").message == "Cancelled after a step."
    assert until_state(store, second.id, "done").step == 0 and queue.training() is None


def test_a_run_that_nobody_watches_prints_as_much_as_it_likes_and_its_last_line_is_told(store, supervise):
    queue = supervise()
    run = queue.start(Recipe(preset="router"))
    failed = until_state(store, run.id, "failed")
    assert failed.message == "The process failed with exit code 1: RuntimeError: the last line"
    assert failed.log.stat().st_size > 10_000_000


def test_a_run_that_is_deaf_is_ended_in_the_end_and_leaves_no_process(store, supervise):
    queue = supervise(step_s=0.2, end_s=0.2)
    run = queue.start(Recipe(preset="hot"))
    running = until(lambda: (now := store.get(run.id)).step > 1 and now)
    queue.cancel(run.id)
    cancelled = until_state(store, run.id, "cancelled")
    assert "can be resumed" in cancelled.message and not psutil.pid_exists(running.pid)


def test_a_cancelled_run_gets_time_in_proportion_to_its_steps(store, supervise):
    queue = supervise(step_s=0.2, end_s=0.2)
    run = queue.start(Recipe(preset="hot"))
    running = until(lambda: (now := store.get(run.id)).step > 1 and now)
    run.events.append("log", 1, {"step_s": 600.0})
    queue.cancel(run.id)
    due = until(lambda: queue._term_at.get(run.id))
    assert due - time.monotonic() > 1100 and is_alive(running)


def test_a_killed_trainer_is_interrupted_and_can_be_resumed(store, supervise):
    queue = supervise()
    run = queue.start(Recipe())
    running = until(lambda: (now := store.get(run.id)).step > 1 and now)
    os.kill(running.pid, signal.SIGKILL)
    interrupted = until_state(store, run.id, "interrupted")
    assert "memory ran out" in interrupted.message and "can be resumed" in interrupted.message
    queue.resume(run.id)
    assert until_state(store, run.id, "running").pid != running.pid


def test_a_run_outlives_its_server_and_the_next_one_takes_it_over(store, supervise):
    first = supervise()
    run = first.start(Recipe())
    running = until(lambda: (now := store.get(run.id)).step > 1 and now)
    first.close()
    second = supervise(step_s=0.2)
    until(lambda: store.get(run.id).step > running.step + 3)
    assert store.get(run.id).pid == running.pid and second.training().id == run.id
    waiting = second.start(Recipe(preset="attention"))
    second.cancel(run.id)
    assert until_state(store, run.id, "cancelled") and until_state(store, waiting.id, "done")


def test_two_servers_of_one_home_start_a_run_once(store, supervise):
    one, other = supervise(), supervise()
    run = other.start(Recipe())
    running = until(lambda: (now := store.get(run.id)).step > 1 and now)
    looks = dict.fromkeys((one, other), 0)
    for each in looks:  # for either one to do it again
        each._tick = counted(each._tick, looks, each)
    until(lambda: min(looks.values()) > 4)
    assert not store.queue() and store.get(run.id).pid == running.pid
    one.close()
    other.cancel(run.id)
    assert until_state(store, run.id, "cancelled")
    later = other.start(Recipe(preset="attention"))
    assert until_state(store, later.id, "done")


def counted(work, counts, key):
    def run():
        work()
        counts[key] += 1

    return run


def test_what_can_not_begin_fails_and_the_queue_goes_on(store, supervise):
    bad, good = store.create(Recipe()), store.create(Recipe(preset="attention"))
    shutil.rmtree(bad.folder)
    supervise()
    assert "files of this run are gone" in until_state(store, bad.id, "failed").message
    assert until_state(store, good.id, "done")


def test_a_run_is_deleted_only_once_it_has_ended(store, supervise):
    queue = supervise()
    run = queue.start(Recipe())
    until_state(store, run.id, "running")
    with pytest.raises(StudioError, match="Cancel it first"):
        queue.delete(run.id)
    queue.cancel(run.id)
    until_state(store, run.id, "cancelled")
    with pytest.raises(StudioError, match="nothing left to cancel"):
        queue.cancel(run.id)
    queue.delete(run.id)
    assert store.list() == [] and not run.folder.exists()


def test_resume_and_delete_right_after_cancel_are_not_mistaken_for_its_end(store, supervise):
    queue = supervise()
    run = queue.start(Recipe())
    for again in (queue.resume, queue.delete):
        until(lambda: store.get(run.id).step > 1)
        queue.cancel(run.id)
        until_state(store, run.id, "cancelled")
        again(run.id)
        if again == queue.resume:
            store.update(run.id, step=0)
    until(lambda: not queue._children)
    assert queue.notice == "" and store.list() == []


def test_a_notice_goes_once_all_is_well_again(store, supervise, monkeypatch):
    monkeypatch.setattr(jobs, "NOTICE_S", 0.2)
    queue = supervise()
    queue._notify("The list was busy.")
    assert queue.status() == "The list was busy."
    until(lambda: queue.status() == "")


def test_a_damaged_store_is_made_again_while_a_run_goes_on(store, supervise):
    queue = supervise()
    run = queue.start(Recipe(), "kept")
    until(lambda: store.get(run.id).step > 1)

    def damaged() -> bool:
        # Repeated until it is noticed: the WAL checkpoint of a writer can restore so small a file.
        if "rebuilt from" not in queue.notice:
            store.path.write_bytes(b"not a database, " * 64)
        return "rebuilt from" in queue.notice

    def kept() -> bool:
        with suppress(StudioError):
            found = store.get(run.id)
            return found.name == "kept" and found.state in ("running", "interrupted")
        return False

    until(damaged)
    until(kept)


def test_full_queue_quota_and_disk_are_said_before_a_run_is_made(store, monkeypatch):
    queue = Jobs(store)
    (store.home / "runs" / "x").mkdir(parents=True)
    (store.home / "runs" / "x" / "file").write_bytes(b"x" * 4096)
    monkeypatch.setenv("STUDIO_QUOTA_GIB", "0.000001")
    with pytest.raises(StudioError, match="Delete what is no longer needed"):
        queue.start(Recipe())
    monkeypatch.setenv("STUDIO_QUOTA_GIB", "much")
    with pytest.raises(StudioError, match="must be a number of GiB"):
        queue.start(Recipe())
    monkeypatch.delenv("STUDIO_QUOTA_GIB")
    monkeypatch.setattr(jobs, "SPACE_BYTES", 2**60)
    with pytest.raises(StudioError, match="disk is too full"):
        queue.start(Recipe())
    monkeypatch.setattr(jobs, "SPACE_BYTES", 1)
    monkeypatch.setattr(jobs, "QUEUED_AT_MOST", 1)
    run = queue.start(Recipe())
    with pytest.raises(StudioError, match="queued already"):
        queue.start(Recipe())
    assert [each.id for each in store.list()] == [run.id]


def test_an_owner_leaves_room_for_others(store, monkeypatch):
    queue = Jobs(store)
    monkeypatch.setattr(jobs, "QUEUED_AT_MOST", 4)
    made = [queue.start(Recipe(), owner="anon:greedy") for _ in range(2)]
    with pytest.raises(StudioError, match="You have 2 runs in the queue"):
        queue.start(Recipe(), owner="anon:greedy")
    assert queue.start(Recipe(), owner="anon:polite")
    store.request_cancel(made[0].id)
    (made[0].folder / "big").write_bytes(b"x" * 40_000)
    monkeypatch.setenv("STUDIO_QUOTA_GIB", str(60_000 / 2**30))
    with pytest.raises(StudioError, match="your part of the quota"):
        queue.start(Recipe(), owner="anon:greedy")
    assert queue.start(Recipe(), owner="anon:other")


def test_an_address_with_many_cookies_leaves_room_for_others(store, monkeypatch):
    queue = Jobs(store)
    monkeypatch.setattr(jobs, "QUEUED_AT_MOST", 4)
    made = [queue.start(Recipe(), owner=f"anon:{i}", address="192.0.2.1") for i in range(2)]
    with pytest.raises(StudioError, match="Your address has 2 runs"):
        queue.start(Recipe(), owner="anon:2", address="192.0.2.1")
    with pytest.raises(StudioError, match="Your address has 2 runs"):
        store.request_cancel(queue.start(Recipe(), owner="anon:3", address="192.0.2.2").id)
        queue.resume(store.list("anon:3")[0].id, address="192.0.2.1")
    monkeypatch.setenv("SPACE_ID", "me/studio")
    monkeypatch.setenv("STUDIO_DEMO", "0")
    assert queue.start(Recipe(), owner="anon:2", address="192.0.2.1")
    store.request_cancel(made[0].id)
    assert queue.start(Recipe(), owner="anon:4", address="192.0.2.1")


def test_a_list_that_is_lost_while_the_server_runs_is_restored_with_a_notice(store, supervise):
    kept = store.create(Recipe(preset="hot"))
    queue = supervise()
    until(lambda: queue.training())
    for suffix in ("-wal", "-shm", ""):
        store.path.with_name(store.path.name + suffix).unlink(missing_ok=True)
    until(lambda: "A run has been restored" in queue.status("user:ada"))
    assert [run.id for run in store.list()] == [kept.id]


def test_unused_uploads_are_deleted_while_the_server_runs(store, supervise, monkeypatch, tmp_path):
    monkeypatch.setattr(jobs, "CLEAN_S", 0.1)
    supervise(Jobs())
    rows = tmp_path / "rows.csv"
    rows.write_text("a,b\n")
    old = store.home / "uploads" / uploads.keep(rows)
    os.utime(old, (0, 0))
    until(lambda: not old.exists())


def test_a_child_sees_no_secret(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("OAUTH_CLIENT_SECRET", "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shown = child.run_json(["-c", "import json, os; print(json.dumps(dict(os.environ)))"])
    assert "secret" not in str(shown) and shown["OMP_NUM_THREADS"] == "1" and shown["PATH"] == os.environ["PATH"]


def test_a_command_ends_with_the_process_that_waits_for_it(tmp_path):
    pid_file = tmp_path / "pid"
    code = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    waiting = f"from studio.backend.system.process import run_json; run_json(['-c', {code!r}])"
    parent = subprocess.Popen([sys.executable, "-c", waiting])
    pid = until(lambda: pid_file.is_file() and pid_file.read_text())
    parent.kill()
    parent.wait()
    until(lambda: not psutil.pid_exists(int(pid)))


def test_what_a_killed_server_left_half_written_is_deleted(store, supervise):
    run = store.create(Recipe(preset="attention"))
    store.request_cancel(run.id)
    whole, half = run.folder / "exports" / "adapter", run.folder / "exports" / ".merged-bf16.x1y2"
    upload = store.home / "adapters" / ".0123.part"
    for folder in (whole, half, upload):
        folder.mkdir(parents=True)
    supervise()
    until(lambda: not half.exists() and not upload.exists())
    assert whole.exists()


def test_what_another_server_left_half_written_is_deleted_after_a_day(store, supervise, monkeypatch):
    monkeypatch.setattr(jobs, "CLEAN_S", 0.1)
    queue = supervise()
    until(lambda: queue._lock.is_locked)
    fresh, old = store.home / "adapters" / ".0.part", store.home / "adapters" / ".1.part"
    for folder in (fresh, old):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    until(lambda: not old.exists())
    assert fresh.exists()


def test_how_a_command_ended_is_told():
    with pytest.raises(StudioError, match=r"^Lower it\.$"):
        child.run_json(["-c", "import sys; print('a traceback'); print('Lower it.', file=sys.stderr); sys.exit(2)"])
    with pytest.raises(StudioError, match="internal error ended the process with exit code 1"):
        child.run_json(["-c", "raise ValueError('odd')"])
    with pytest.raises(StudioError, match="memory ran out"):
        child.run_json(["-c", "import os; os.kill(os.getpid(), 9)"])


def test_a_command_that_is_stopped_leaves_no_process(tmp_path):
    cancel, pid_file = threading.Event(), tmp_path / "pid"
    code = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    stopper = threading.Thread(
        target=lambda: (until(lambda: pid_file.is_file() and pid_file.read_text()), cancel.set())
    )
    stopper.start()
    with pytest.raises(StudioError, match="Cancelled"):
        child.run_json(["-c", code], cancel)
    stopper.join()
    assert not psutil.pid_exists(int(pid_file.read_text()))
