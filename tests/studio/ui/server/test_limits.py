"""Rates and sizes of requests, on a small app: what is counted, what is refused, and what is forgotten again."""

import json
import math
import os

import anyio
import pytest
from anyio.from_thread import start_blocking_portal
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from studio.ui.server.json_nodes import NodeCount
from studio.ui.server.limits import MIB, RATES, Bodies, Buckets, Rate, Rates, Turns, kind_of, visitor_of

RATE = Rate(per_second=2, burst=3)


async def size(request: Request) -> JSONResponse:
    """As Gradio reads bodies; answers a problem of its own where that fails, as FastAPI does."""
    try:
        return JSONResponse(len(await request.body()))
    except Exception:
        return JSONResponse("can't be parsed", 400)


async def login(request: Request) -> PlainTextResponse:
    return PlainTextResponse("", 200 if (await request.body()) == b"right" else 400)


def client(middleware: Middleware) -> TestClient:
    routes = [Route("/gradio_api/{name:path}", size, methods=["POST"]), Route("/login", login, methods=["POST"])]
    return TestClient(Starlette(routes=routes, middleware=[middleware]))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_empties_and_fills_again():
    clock = Clock()
    buckets = Buckets(clock=clock)
    assert [buckets.take("a", "work", RATE) for _ in range(4)] == [0, 0, 0, 0.5]
    assert buckets.take("b", "work", RATE) == 0 and buckets.take("a", "poll", RATE) == 0
    clock.now = 0.5
    assert buckets.take("a", "work", RATE) == 0 and buckets.take("a", "work", RATE) == 0.5
    clock.now = 1000.0
    assert [buckets.take("a", "work", RATE) for _ in range(4)] == [0, 0, 0, 0.5]


def test_only_so_many_visitors_are_remembered():
    buckets = Buckets(visitors=100, clock=Clock())
    for number in range(1000):
        buckets.take(str(number), "work", RATE)
    assert len(buckets) == 100
    # Who asks again is not forgotten for those who came later.
    for _ in range(3):
        buckets.take("999", "work", RATE)
    for number in range(2000, 2099):
        buckets.take(str(number), "work", RATE)
    assert buckets.take("999", "work", RATE) > 0


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/gradio_api/queue/join", "work"), ("/gradio_api/upload", "work"), ("/gradio_api/call/send", "work"),
        ("/exports/x/adapter.zip", "work"), ("/labelled/x.csv", "work"), ("/login", "login"), ("/login/", "login"),
        ("/gradio_api/component_server", "poll"), ("/watch/runs", "poll"),
        ("/gradio_api/queue/data", "poll"), ("/config", "poll"),
        ("/gradio_api/run/predict", "poll"), ("/gradio_api/heartbeat/x", "poll"), ("/", None),
        ("/assets/index.js", None), ("/theme.css", None),
    ],
)  # fmt: skip
def test_kinds_of_requests(path, kind):
    assert kind_of(path) == kind


def test_a_class_room_of_viewers_stays_below():
    clock = Clock()
    buckets = Buckets(clock=clock)
    refused = 0
    for second in range(60):
        for number in range(220):  # a hundred pages: events and at times the list each second, the status at 2/3 Hz
            clock.now = second + number / 220
            refused += buckets.take("school", "poll", RATES["poll"]) > 0
    assert refused == 0


def test_who_asks_too_often_waits():
    asking = client(Middleware(Rates, rates={**RATES, "work": RATE}, buckets=Buckets(clock=Clock())))
    answers = [asking.post("/gradio_api/queue/join", content=b"x") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert answers[3].headers["Retry-After"] == "1" and "Wait a moment" in answers[3].json()["detail"]
    assert asking.post("/gradio_api/component_server", content=b"x").status_code == 200


def test_logins_that_fail_are_limited_and_those_that_succeed_are_not():
    asking = client(Middleware(Rates, buckets=Buckets(clock=Clock())))
    assert {asking.post("/login", content=b"right").status_code for _ in range(50)} == {200}
    assert {asking.post("/login", content=b"wrong").status_code for _ in range(10)} == {400}
    refused = asking.post("/login", content=b"right")
    assert refused.status_code == 429 and "login attempts" in refused.json()["detail"]


def test_visitors_are_told_apart_by_address():
    def visitor(host):
        return visitor_of({"client": (host, 1)} if host else {"client": None})

    assert visitor("192.0.2.1") != visitor("192.0.2.2")
    assert visitor("2001:db8:0:1::1") == visitor("2001:db8:0:1:ffff::2") != visitor("2001:db8:0:2::1")
    assert visitor("::ffff:192.0.2.1") == visitor("192.0.2.1") and visitor(None) == ""


@pytest.fixture
def sized(tmp_path) -> TestClient:
    return client(
        Middleware(
            Bodies, folder=tmp_path, upload_bytes=MIB, event_bytes=1000, files=3, folder_bytes=4 * MIB, folder_files=50
        )
    )


def chunks(size: int, piece: int = 300):
    """Without a Content-Length."""
    for at in range(0, size, piece):
        yield b"x" * min(piece, size - at)


def test_bodies_are_counted_while_they_arrive(sized):
    assert sized.post("/gradio_api/queue/join", content=b"x" * 1000).json() == 1000
    assert sized.post("/gradio_api/queue/join", content=chunks(1000)).json() == 1000
    for body in (b"x" * 1001, chunks(1001), chunks(100_000)):
        refused = sized.post("/gradio_api/queue/join", content=body)
        assert refused.status_code == 413 and "too large" in refused.json()["detail"]


def below_http(bodies: Bodies, path: str, headers: list, arriving: list[dict]) -> list[int]:
    """Return the statuses sent for a request that arrives in these pieces; unread pieces stay in the list."""
    sent: list[dict] = []

    async def receive():
        return arriving.pop(0)

    async def send(message):
        sent.append(message)

    # Not in this thread, where the browser of other tests may have a loop of its own.
    with start_blocking_portal() as portal:
        portal.call(bodies, {"type": "http", "method": "POST", "path": path, "headers": headers}, receive, send)
    return [message["status"] for message in sent if "status" in message]


async def measured(scope, receive, send):
    """Answers with the size of the body."""
    await JSONResponse(len(await Request(scope, receive).body()))(scope, receive, send)


@pytest.mark.parametrize("said", ["0", "5", "-1", "x", "9" * 30])
def test_what_a_request_says_of_its_length_is_not_believed(tmp_path, said):
    """Where a server would have refused most of these."""
    arriving = [{"type": "http.request", "body": b"x" * 600, "more_body": True}] * 3
    bodies = Bodies(measured, folder=tmp_path, event_bytes=1000)
    headers = [(b"content-length", said.encode())]
    assert below_http(bodies, "/gradio_api/queue/join", headers, arriving) == [413] and len(arriving) == 1


def files(count: int, size: int = 10):
    return [("files", (f"{number}.txt", b"-" * size)) for number in range(count)]


def test_uploads_are_limited_in_size_number_and_space(sized, tmp_path):
    def upload(*sent):
        return sized.post("/gradio_api/upload", files=sent[0])

    assert upload(files(3)).status_code == 200 and upload(files(1, MIB)).status_code == 200
    many, large = upload(files(4)), upload(files(2, MIB))
    assert many.status_code == 413 and "At most 3 files" in many.json()["detail"]
    assert large.status_code == 413 and "at most 1 MiB" in large.json()["detail"]
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "file").write_bytes(b"x" * (4 * MIB - 1000))
    full = upload(files(1, 2000))
    assert full.status_code == 507 and "no room" in full.json()["detail"]
    (tmp_path / "deeper" / "file").unlink()
    assert upload(files(1, 2000)).status_code == 200


def test_an_address_can_not_use_all_of_the_room(tmp_path):
    asking = client(Middleware(Bodies, folder=tmp_path, folder_bytes=4 * MIB, share=0.5))
    assert asking.post("/gradio_api/upload", files=files(1, MIB)).status_code == 200
    refused = asking.post("/gradio_api/upload", files=files(1, MIB + 1000))
    assert refused.status_code == 429 and "Try again tomorrow" in refused.json()["detail"]
    other = TestClient(asking.app, client=("203.0.113.9", 1))
    assert other.post("/gradio_api/upload", files=files(1, MIB)).status_code == 200


@pytest.mark.parametrize("path", ["queue/join", "component_server"])
def test_values_are_counted_before_they_are_parsed(tmp_path, path):
    asking = client(Middleware(Bodies, folder=tmp_path, other_bytes=MIB))
    for body in (b"[" + b"[]," * 30_000, b'{"a":' * 60_000, b'["a","b"' + b',""' * 60_000):
        refused = asking.post(f"/gradio_api/{path}", content=body)
        assert refused.status_code == 413 and "too many values" in refused.json()["detail"]
    text = json.dumps({"data": ['[{",\\"' * 60_000]}).encode()
    assert asking.post(f"/gradio_api/{path}", content=chunks_of(text, 7)).status_code == 200


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_brackets_in_strings_are_no_values(size):
    values = {"a": ['[,{"', "\\", '\\"[', ""], "b": [1, {"c": 2}]}
    count = NodeCount()
    for piece in chunks_of(json.dumps(values).encode(), size):
        count.add(piece)
    assert count.nodes == 9  # 2 objects, 2 lists, 5 commas


def chunks_of(text: bytes, size: int):
    for at in range(0, len(text), size):
        yield text[at : at + size]


def test_an_address_can_not_send_events_without_end(tmp_path):
    asking = client(Middleware(Bodies, folder=tmp_path, event_bytes=MIB))
    statuses = [asking.post("/gradio_api/queue/join", content=b" " * MIB).status_code for _ in range(70)]
    assert statuses[:64] == [200] * 64 and 429 in statuses


def test_other_requests_are_small(tmp_path):
    asking = client(Middleware(Bodies, folder=tmp_path))
    assert asking.post("/gradio_api/queue/join", content=b" " * MIB).status_code == 200
    refused = asking.post("/gradio_api/component_server", content=b" " * MIB)
    assert refused.status_code == 413 and "at most 256 KiB" in refused.json()["detail"]


@pytest.mark.parametrize(("most", "status"), [(3, 413), (4, 200)])
def test_files_are_counted_across_seams(tmp_path, most, status):
    """Pieces of 5 bytes, which cut every separator in two."""
    part = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="x"\r\n\r\nx\r\n'
    body = 4 * part + b"--edge--\r\n"
    pieces = [body[at : at + 5] for at in range(0, len(body), 5)]
    arriving = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    arriving.append({"type": "http.request", "body": b"", "more_body": False})
    bodies = Bodies(measured, folder=tmp_path, files=most)
    headers = [(b"content-type", b'multipart/form-data; boundary="edge"')]
    assert below_http(bodies, "/gradio_api/upload", headers, arriving) == [status]


def test_small_files_are_limited_in_number(sized, tmp_path):
    for number in range(49):
        (tmp_path / str(number)).touch()
    assert sized.post("/gradio_api/upload", files=files(1)).status_code == 200
    (tmp_path / "49").touch()
    full = sized.post("/gradio_api/upload", files=files(1))
    assert full.status_code == 507 and "no room" in full.json()["detail"]


@pytest.mark.parametrize("pause_s", [0.01, None], ids=["a byte at a time", "nothing any more"])
@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/queue/join"])
def test_what_arrives_too_slowly_is_ended(tmp_path, path, pause_s):
    sent: list[dict] = []
    pauses = iter([0.0])

    async def receive():
        await anyio.sleep(next(pauses, math.inf if pause_s is None else pause_s))
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message):
        sent.append(message)

    async def app(scope, receive, send):
        await JSONResponse(len(await Request(scope, receive).body()))(scope, receive, send)

    bodies = Bodies(app, folder=tmp_path, grace_s=0.1)
    scope = {"type": "http", "method": "POST", "path": path, "headers": []}
    with start_blocking_portal() as portal:
        portal.call(bodies, scope, receive, send)
    assert [message["status"] for message in sent if "status" in message] == [408]
    assert b"too slowly" in sent[-1]["body"]


def test_who_waits_long_for_an_answer_is_not_slow(tmp_path):
    """A body that is complete is not timed any more; an application listens on for whether its sender leaves."""
    arriving = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"x", "more_body": False}]
    told: list[str] = []

    async def receive():
        if len(arriving) == 1:
            await anyio.sleep(0.2)
        return arriving.pop()

    async def app(scope, receive, send):
        told.extend([(await receive())["type"], (await receive())["type"]])

    bodies = Bodies(app, folder=tmp_path, grace_s=0.1)
    with start_blocking_portal() as portal:
        portal.call(bodies, {"type": "http", "method": "POST", "path": "/x", "headers": []}, receive, None)
    assert told == ["http.request", "http.disconnect"]


@pytest.mark.parametrize(("name", "status"), [("rows.csv", 413), ("pirate.ZIP", 200), ("x.safetensors", 200)])
def test_a_limit_for_data_is_applied_while_it_arrives(tmp_path, name, status):
    asking = client(Middleware(Bodies, folder=tmp_path, data_bytes=MIB))
    answer = asking.post("/gradio_api/upload", files=[("files", (name, b"x" * 2 * MIB))])
    assert answer.status_code == status
    assert status == 200 or "at most 1 MiB" in answer.json()["detail"]


def test_empty_files_that_gradio_leaves_are_deleted(tmp_path):
    for number in range(3):
        (tmp_path / f"tmp{number}").touch()
        os.utime(tmp_path / f"tmp{number}", (0, 0))
    (tmp_path / "tmp9").touch()
    asking = client(Middleware(Bodies, folder=tmp_path))
    assert asking.post("/gradio_api/upload", files=files(1)).status_code == 200
    assert [each.name for each in tmp_path.iterdir()] == ["tmp9"]


def test_direct_events_of_an_address_take_turns_and_those_of_others_do_not_wait():
    running: dict[str, int] = {}
    most: dict[str, int] = {}

    async def app(scope, receive, send):
        address = scope["client"][0]
        running[address] = running.get(address, 0) + 1
        most[address] = max(most.get(address, 0), running[address])
        if address == "greedy":
            await done.wait()
        running[address] -= 1

    async def all_of_them() -> None:
        nonlocal done
        done, turns = anyio.Event(), Turns(app, most=3)
        async with anyio.create_task_group() as group:
            for address in ["greedy"] * 20 + ["polite"]:
                scope = {"type": "http", "path": "/gradio_api/run/predict", "client": (address, 1)}
                group.start_soon(turns, scope, None, None)
            await anyio.wait_all_tasks_blocked()
            assert most == {"greedy": 3, "polite": 1} and running["polite"] == 0
            done.set()
        assert running == {"greedy": 0, "polite": 0} and not turns._turns and not turns._requests

    done = None
    with start_blocking_portal() as portal:
        portal.call(all_of_them)
