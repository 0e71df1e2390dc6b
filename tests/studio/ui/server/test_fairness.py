"""One greedy visitor beside a polite one, on a server with a toy model: the polite one's waits stay within a bound.

The bound is far above the usual tenth of a second, because tests run on busy machines; without the limits, the polite
visitor is refused, or waits for hundreds of answers.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

from tests.builders.visitors import Studio, Visitor, two_visitors
from tests.builders.waiting import until

WAIT_S = 20.0
GREEDY = {"X-Forwarded-For": "198.51.100.66"}


@pytest.fixture(scope="module")
def studio(tmp_path_factory) -> Iterator[Studio]:
    with two_visitors(tmp_path_factory.mktemp("studio")) as made:
        yield made


def ask(visitor: Visitor, tokens: int = 4) -> tuple[float, str]:
    """Return how long an answer of the API took, and what it was."""
    number = next(each["id"] for each in visitor.config["dependencies"] if each["api_name"] == "chat")
    session, begun = uuid.uuid4().hex, time.monotonic()
    data = ["Hello", None, "", tokens, 0.0, 1]
    body = {"data": data, "fn_index": number, "session_hash": session, "trigger_id": None}
    joined = visitor.http.post("/gradio_api/queue/join", json=body)
    if joined.is_error:
        return time.monotonic() - begun, joined.text
    with visitor.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
        told = next(line for line in stream.iter_lines() if '"process_completed"' in line)
    return time.monotonic() - begun, told


def test_a_polite_visitor_is_answered_beside_a_greedy_one(studio):
    """The greedy one has one address and a new cookie for each request, and sends as fast as it can.

    Takes longer than five seconds on a busy machine, because a real server answers real requests.
    """
    base, config = str(studio.bob.http.base_url), studio.bob.config
    number = next(each["id"] for each in config["dependencies"] if each["api_name"] == "chat")
    stop, statuses = threading.Event(), Counter[int]()

    def be_greedy() -> None:
        while not stop.is_set():
            body = {"data": ["Hello", None, "", 32, 0.0, 1], "fn_index": number, "session_hash": uuid.uuid4().hex}
            with httpx.Client(base_url=base, headers=GREEDY, timeout=60) as http:
                http.get("/")
                statuses[http.post("/gradio_api/queue/join", json=body | {"trigger_id": None}).status_code] += 1

    threads = [threading.Thread(target=be_greedy) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: statuses[429] + statuses[503])
        answers = [ask(studio.ada) for _ in range(2)]
        polls = [timed(studio.ada, "/watch/runs") for _ in range(10)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert all('"success":true' in told for _, told in answers), answers
    assert max(wait for wait, _ in answers) < WAIT_S and max(polls) < WAIT_S / 4
    assert set(statuses) <= {200, 429, 503}


def timed(visitor: Visitor, path: str) -> float:
    begun = time.monotonic()
    assert visitor.http.get(path).status_code == 200
    return time.monotonic() - begun
