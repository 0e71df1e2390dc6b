"""What anybody may ask of training runs, again and again."""

import math

import pytest
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.testclient import TestClient
from uvicorn.protocols.http.h11_impl import H11Protocol

from studio.backend.runs.store import RunStore
from studio.backend.runs.views import RunViews
from studio.ui.server.identity import Identity
from studio.ui.server.run_routes import routes
from tests.builders.toy_runs import toy_run


@pytest.fixture
def store(tmp_path) -> RunStore:
    return RunStore(tmp_path)


@pytest.fixture
def page(store) -> TestClient:
    return TestClient(Starlette(routes=routes(RunViews(store)), middleware=[Middleware(Identity)]))


def test_the_page_asks_for_the_list_and_for_what_is_new(store, page):
    toy, other = toy_run(store, "one").audit().train(3), toy_run(store, "two")
    assert [row["id"] for row in page.get("/watch/runs").json()["runs"]] == [other.run.id, toy.run.id]
    events = [event.seq for event in toy.run.events.read()]
    for after in (0, 4):
        answer = page.get(f"/watch/runs/{toy.run.id}", params={"after": after}).json()
        assert [event["seq"] for event in answer["events"]] == events[after:]
    compared = page.get("/watch/comparison", params={"id": [toy.run.id, other.run.id]}).json()
    assert len(compared["runs"]) == 2
    assert "error" in page.get("/watch/comparison", params={"id": [toy.run.id, "f" * 36]}).json()


def test_what_is_not_finite_is_null(store, page):
    toy = toy_run(store, "one")
    toy.run.events.append("log", 1, {"loss": math.nan})
    assert page.get(f"/watch/runs/{toy.run.id}").json()["events"][0]["values"] == {"loss": None}


@pytest.mark.parametrize("odd", ["x", "a" * 36, "a" * 5000, "%00", "..%2f..", "${7*7}"])
def test_odd_ids_get_nothing(store, page, odd):
    toy_run(store, "one")
    answer = page.get(f"/watch/runs/{odd}")
    assert answer.status_code == 404 or answer.json()["run"] is None
    assert [*page.get(f"/watch/comparison?id={odd}").json()] == ["error"]


@pytest.mark.parametrize("after", ["-1", "1.0", "x", "", "9" * 40, "٣"])
def test_odd_places_in_the_events_get_nothing(store, page, after):
    toy = toy_run(store, "one").audit()
    assert page.get(f"/watch/runs/{toy.run.id}", params={"after": after}).json()["run"] is None


def test_settings_and_logs_are_told(store, page):
    toy = toy_run(store, "one")
    toy.run.log.write_text("one\ntwo\n")
    assert page.get(f"/watch/runs/{toy.run.id}/settings").json()["yaml"] == toy.run.recipe().to_yaml()
    assert page.get(f"/watch/runs/{toy.run.id}/log?after=4").json()["text"] == "two\n"
    whole = page.get(f"/watch/runs/{toy.run.id}/log.txt")
    assert whole.text == "one\ntwo\n" and "attachment" in whole.headers["content-disposition"]
    assert page.get(f"/watch/runs/{'0' * 36}/log.txt").status_code == 404
    version = page.get("/watch/runs").json()["version"]
    assert page.get("/watch/runs", params={"since": version}).json()["runs"] == []


def test_nothing_is_changed_by_asking(page):
    assert page.post("/watch/runs").status_code == 405


def test_the_servers_loop_is_the_fast_one_and_its_headers_have_an_end():
    config = uvicorn.Config(Starlette())
    config.load()
    loop = config.get_loop_factory()()
    loop.close()
    assert isinstance(loop, uvloop.Loop)
    assert issubclass(config.http_protocol_class, H11Protocol)
