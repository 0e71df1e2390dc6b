"""What pages are told of training runs, and how often the disk is read for it."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from studio.backend.recipe import Recipe
from studio.backend.runs import views as run_views
from studio.backend.runs.comparison import compare
from studio.backend.runs.events import EventLog
from studio.backend.runs.store import RunStore
from studio.backend.runs.views import COMPARED, EVENTS_A_CALL, KEPT_RUNS, RunViews
from tests.builders.toy_runs import SENTENCE, ToyRun, fill, toy_run

READS: list[str] = []


class CountedStore(RunStore):
    def list(self):
        READS.append("list")
        return super().list()


@pytest.fixture
def store(tmp_path, monkeypatch) -> RunStore:
    """Every reading of the list and of a run's events is counted in `READS`."""
    read = EventLog.read

    def counted(log: EventLog, after: int = 0):
        READS.append(log.path.parent.name)
        return read(log, after)

    monkeypatch.setattr(EventLog, "read", counted)
    READS.clear()
    return CountedStore(tmp_path)


@pytest.fixture
def always(monkeypatch) -> None:
    """Every call reads the disk anew."""
    monkeypatch.setattr(run_views, "READ_EVERY_S", 0.0)


@pytest.fixture
def once(monkeypatch) -> None:
    """As if all calls were within the same second."""
    monkeypatch.setattr(run_views, "READ_EVERY_S", 1e9)


def views_of(store: RunStore) -> RunViews:
    return RunViews(store)


def everything(views: RunViews, run_id: str) -> list[dict]:
    got: list[dict] = []
    while True:
        answer = views.events(run_id, got[-1]["seq"] if got else 0)
        got += answer["events"]
        if not answer["more"]:
            return got


def test_the_list_tells_what_pages_show(store):
    made = fill(store)
    listed = views_of(store).listing()
    assert json.loads(json.dumps(listed, allow_nan=False)) == listed and listed["notice"] == ""
    assert [row["id"] for row in listed["runs"]] == [run.id for run in store.list()]
    rows = {row["id"]: row for row in listed["runs"]}
    running, queued, done, failed = (rows[made[state].run.id] for state in ("running", "queued", "done", "failed"))
    assert (running["state"], running["step"], running["steps"], running["place"]) == ("running", 30, 80, 0)
    assert running["started"] and not running["has_adapter"] and running["folder_exists"]
    assert (queued["state"], queued["steps"], queued["place"], queued["started"]) == ("queued", None, 1, None)
    assert rows[made["hostile 1"].run.id]["place"] == 3
    assert done["has_adapter"] and done["steps"] == 80 and done["ended"] and done["best_eval_loss"] > 0
    assert failed["message"] == SENTENCE


@pytest.mark.parametrize(
    ("data", "model", "told"),
    [
        ("identity", "jetmoe/jetmoe-8b", ("identity", "jetmoe/jetmoe-8b")),
        ("/home/me/secret/rows.csv", "/home/me/models/mine", ("rows.csv", "mine")),
        ("C:\\Users\\me\\rows.csv", "C:\\models\\mine", ("rows.csv", "mine")),
        ("../rows.csv", "~/models/mine", ("rows.csv", "mine")),
        ("hub:me/rows:train[:9]", "jetmoe/jetmoe-8b", ("hub:me/rows:train[:9]", "jetmoe/jetmoe-8b")),
    ],
)
def test_no_path_is_told(store, data, model, told):
    runs = [toy_run(store, name, begin=False, data=data, model=model).run for name in ("a", "b")]
    other = toy_run(store, "c", begin=False).run
    views = views_of(store)
    row = views.listing()["runs"][-1]
    assert (row["data"], row["model"]) == told
    settings = views.comparison([runs[0].id, other.id])["settings"]
    assert (settings["data"][runs[0].id], settings["model"][runs[0].id]) == told


def test_events_come_in_parts_and_grow(store, always):
    toy = toy_run(store, "long", steps=2000).audit()
    for step in range(1, EVENTS_A_CALL + 100):
        toy.run.events.append("log", step, {"loss": 1.0})
    views = views_of(store)
    first = views.events(toy.run.id, 0)
    assert len(first["events"]) == EVENTS_A_CALL and first["more"] and first["run"]["name"] == "long"
    got = everything(views, toy.run.id)
    assert [event["seq"] for event in got] == list(range(1, EVENTS_A_CALL + 101))
    assert got == [vars(event) for event in toy.run.events.read()]
    toy.log(700)
    added = views.events(toy.run.id, got[-1]["seq"])
    assert [event["step"] for event in added["events"]] == [700] and not added["more"]
    assert added["run"]["step"] == 700


@pytest.mark.parametrize("run_id", ["", "x", "..", "%", "0" * 36, "f" * 8, "${1}"])
def test_there_is_no_run_of_another_id(store, run_id):
    toy_run(store, "only")
    answer = views_of(store).events(run_id, 0)
    assert (answer["run"], answer["events"], answer["more"]) == (None, [], False)


def test_a_cut_id_is_none(store):
    toy = toy_run(store, "only")
    assert views_of(store).events(toy.run.id[:8])["run"] is None


def test_the_disk_is_read_once_whoever_asks(store, once):
    toys = [toy_run(store, name).audit().train(25) for name in ("a", "b")]
    views = views_of(store)
    READS.clear()

    def look(number: int) -> int:
        views.listing()
        views.comparison([toy.run.id for toy in toys])
        return len(views.events(toys[number % 2].run.id, 0)["events"])

    with ThreadPoolExecutor(8) as pool:
        counts = [*pool.map(look, range(40))]
    assert sorted(READS) == sorted(["list", *(toy.run.id for toy in toys)])
    assert set(counts) == {len([*toys[0].run.events.read()])}


def test_only_what_is_new_is_read(store, always, monkeypatch):
    toy = toy_run(store, "grows").audit().train(10)
    views = views_of(store)
    last = everything(views, toy.run.id)[-1]["seq"]
    asked: list[int] = []
    read = EventLog.read
    monkeypatch.setattr(EventLog, "read", lambda log, after=0: asked.append(after) or read(log, after))
    toy.log(11)
    assert [event["step"] for event in views.events(toy.run.id, last)["events"]] == [11]
    assert asked == [last]


def test_a_run_that_ended_is_read_no_more_until_its_row_changes(store, always, monkeypatch):
    monkeypatch.setattr(run_views, "SETTLED_S", 0.0)
    toy = toy_run(store, "ends").audit().train(5).finish("interrupted", "The machine went down.")
    views = views_of(store)
    views.events(toy.run.id)
    READS.clear()
    for _ in range(5):
        assert views.events(toy.run.id)["run"]["state"] == "interrupted"
    assert toy.run.id not in READS
    store.resume(toy.run.id)
    store.mark_running(toy.run.id)
    toy.log(6)
    assert views.events(toy.run.id)["events"][-1]["step"] == 6


def test_the_last_event_is_told_even_if_it_comes_after_the_end(store, always):
    """As `carry_out` does when a run fails."""
    toy = toy_run(store, "fails").audit().train(5)
    views = views_of(store)
    store.finish(toy.run.id, "failed", SENTENCE)
    assert views.events(toy.run.id)["run"]["state"] == "failed"
    toy.run.events.append("failed", 5, {"message": SENTENCE})
    assert everything(views, toy.run.id)[-1]["kind"] == "failed"


def test_only_some_runs_stay_in_memory(store, once):
    toys = [toy_run(store, str(number)).audit() for number in range(KEPT_RUNS + 2)]
    views = views_of(store)
    for toy in toys:
        assert len(views.events(toy.run.id)["events"]) == 1
    assert [*views._histories] == [toy.run.id for toy in toys[2:]]


def test_deleted_runs_are_gone_and_deleted_folders_are_told(store, always):
    first, second = (toy_run(store, name).audit().train(3).finish("done", "") for name in ("first", "second"))
    views = views_of(store)
    assert len(views.listing()["runs"]) == 2 and everything(views, first.run.id)
    store.delete(first.run.id)
    for file in [*second.run.folder.rglob("*")]:
        file.unlink()
    second.run.folder.rmdir()
    row = views.listing()["runs"][0]
    assert (row["name"], row["folder_exists"], row["has_adapter"]) == ("second", False, False)
    assert views.events(first.run.id)["run"] is None and not views._histories.get(first.run.id)
    assert views.events(second.run.id)["run"]["name"] == "second"
    assert "are gone" in views.comparison([second.run.id, toy_run(store, "third").run.id])["error"]


def test_a_list_that_cannot_be_read_keeps_its_last_rows_and_says_why(store, always):
    toy_run(store, "seen")
    views = views_of(store)
    views.listing()
    for suffix in ("-wal", "-shm"):
        store.path.with_name(store.path.name + suffix).unlink(missing_ok=True)
    store.path.write_bytes(b"no database" * 1000)
    listed = views.listing()
    assert [row["name"] for row in listed["runs"]] == ["seen"] and "damaged" in listed["notice"]


@pytest.mark.parametrize("tail", [b"", b'{"seq": 99, "step": 3', b"\xff\xfe\n", b"[1]\n7\nnull\n", b"x" * 300_000])
def test_the_number_of_steps_is_found_in_whatever_is_written(store, tail):
    toy = toy_run(store, "torn", steps=80).audit().train(7)
    with toy.run.events.path.open("ab") as file:
        file.write(tail)
    steps = views_of(store).listing()["runs"][0]["steps"]
    assert steps == (80 if len(tail) < 1000 else None)


def test_comparisons_are_those_of_the_store(store):
    toys: list[ToyRun] = [
        toy_run(store, "a", r=8).audit().train(20),
        toy_run(store, "b", r=32, speed=0.5).audit().train(22),
    ]
    ids = [toy.run.id for toy in toys]
    told = views_of(store).comparison(ids)
    labels = told.pop("labels")
    assert told == compare([store.get(run_id) for run_id in ids])
    assert labels["r"] == "LoRA rank" and labels["eval_loss"] == "Held-out loss"
    assert told["settings"]["r"] == dict(zip(ids, (8, 32), strict=True))
    assert json.loads(json.dumps(told)) == told


def test_a_list_holds_only_what_has_changed_since_an_earlier_one(store, always):
    first, second = toy_run(store, "first", owner="user:ada"), toy_run(store, "second", owner="user:bob")
    views = views_of(store)
    whole = views.listing()
    assert whole["whole"] and len(whole["runs"]) == 2
    same = views.listing(since=whole["version"])
    assert not same["whole"] and not same["runs"] and same["version"] == whole["version"]
    first.log(1)
    third = toy_run(store, "third", owner="user:ada")
    changed = views.listing(since=whole["version"])
    assert [row["id"] for row in changed["runs"]] == [third.run.id, first.run.id]
    store.finish(second.run.id, "done")
    store.delete(second.run.id)
    for owner, gone in (("", [second.run.id]), ("user:bob", [second.run.id]), ("user:ada", [])):
        assert views.listing(owner, changed["version"])["gone"] == gone
    for unknown in ("", "x-1", f"{changed['version']}x", "-"):
        assert views.listing("user:ada", unknown)["whole"]


def test_settings_are_shown_by_section_without_folders(store, tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("question,answer\na,b\n")
    run = store.create(Recipe(data=str(rows), r=8), "a", owner="user:ada")
    shown = views_of(store).settings(run.id, "user:ada")
    values = {each["name"]: each for section in shown["sections"] for each in section["settings"]}
    assert values["data"]["value"] == "rows.csv" and str(tmp_path) not in json.dumps(shown)
    assert values["r"] == {"name": "r", "label": "LoRA rank", "value": 8, "default": False}
    assert values["seed"]["default"] and "r: 8" in shown["yaml"]
    assert [*views_of(store).settings(run.id, "user:bob")] == ["error"]


def test_a_log_is_read_by_its_owner_and_names_no_folder(store):
    run = store.create(Recipe(data="devils-dictionary"), "a", owner="user:ada")
    run.log.write_text(f"saved {store.home}/runs/x\nunfinished")
    views = views_of(store)
    part = views.log(run.id, owner="user:ada")
    assert part["text"] == "saved runs/x\n" and part["next"] < part["size"]
    assert "error" in views.log(run.id, owner="user:bob") and views.whole_log(run.id, "user:bob") is None
    assert "".join(views.whole_log(run.id, "user:ada") or ()) == "saved runs/x\nunfinished"


def test_what_cannot_be_compared_gets_a_sentence(store):
    ids = [toy_run(store, str(number), begin=False).run.id for number in range(COMPARED + 1)]
    views = views_of(store)
    for asked in ([], ids[:1], [ids[0], ids[0]], ids, [ids[0], "f" * 36]):
        assert views.comparison(asked) == {"error": "Choose 2 to 6 runs from the list to compare."}
    assert len(views.comparison(ids[:COMPARED])["runs"]) == COMPARED


def test_no_page_learns_where_the_studio_lies_on_the_server(store, always):
    toy = toy_run(store, "lost")
    toy.run.events.append("warning", 1, {"message": f"{store.home}/runs.sqlite3 is damaged."})
    store.finish(toy.run.id, "failed", f"There is no file '{store.home}/uploads/x/rows.csv'.")
    answer = views_of(store).events(toy.run.id)
    assert answer["run"]["message"] == "There is no file 'uploads/x/rows.csv'."
    assert answer["events"][-1]["values"] == {"message": "runs.sqlite3 is damaged."}
    assert str(store.home) not in json.dumps([answer, views_of(store).listing()])
