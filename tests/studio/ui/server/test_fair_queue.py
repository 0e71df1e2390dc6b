"""Gradio's queue with a share for everybody: a greedy visitor against polite ones. Nothing is processed here."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from gradio.data_classes import PredictBodyInternal

from studio.ui.page.blocks import Blocks
from studio.ui.server import fair_queue
from studio.ui.server.fair_queue import ADDRESS_EVENTS, OWN_EVENTS, Claims, FairQueue


@pytest.fixture
def queue() -> FairQueue:
    with Blocks() as demo:
        gr.Button().click(lambda: None)
    made = demo.queue(max_size=32)._queue
    assert isinstance(made, FairQueue) and made.max_size == 32
    return made


def run(work: Coroutine[Any, Any, Any]) -> Any:
    with ThreadPoolExecutor(1) as thread:  # where a browser is open, this one has a running loop
        return thread.submit(asyncio.run, work).result()


async def push(queue: FairQueue, session: str, owner: str, address: str, is_known: bool = True) -> str:
    """Return the reason of a refusal."""
    scope = {"client": (address, 1), "state": {"owner": owner, "is_known": is_known}}
    body = PredictBodyInternal(session_hash=session, fn_index=0, data=[], request=None)
    ok, answer, _ = await queue.push(body, SimpleNamespace(scope=scope), None)
    return "" if ok else str(answer)


async def greedy(queue: FairQueue, count: int, owner: str = "", address: str = "") -> list[str]:
    """Events with a made-up session each, of one owner or of one address."""
    return [
        await push(queue, f"made up {i} {owner}", owner or f"anon:{i}", address or f"192.0.2.{i}", bool(owner))
        for i in range(count)
    ]


def test_one_cookie_leaves_room_for_others(queue):
    async def both() -> None:
        answers = await greedy(queue, 40, owner="anon:greedy")
        assert not any(answers[:OWN_EVENTS]) and all("in the queue already" in each for each in answers[OWN_EVENTS:])
        assert await push(queue, "polite", "anon:polite", "198.51.100.1") == ""

    run(both())


def test_one_address_with_many_cookies_leaves_room_for_others(queue):
    async def both() -> None:
        answers = await greedy(queue, 40, address="192.0.2.1")
        assert answers.count("") == ADDRESS_EVENTS
        assert await push(queue, "polite", "anon:polite", "198.51.100.1") == ""

    run(both())


def test_addresses_take_turns(queue):
    async def both() -> None:
        await greedy(queue, 5, address="192.0.2.1")
        for number in range(2):
            await push(queue, f"polite {number}", "anon:polite", "198.51.100.1")
        waiting = [event.session_hash for each in queue.event_queue_per_concurrency_id.values() for event in each.queue]
        assert [waiting.index(f"polite {number}") for number in range(2)] == [1, 3]
        assert waiting[0] == "made up 0 " and waiting[-1] == "made up 4 "

    run(both())


def test_events_that_nobody_listens_to_are_dropped(queue, monkeypatch):
    async def both() -> None:
        with queue.listening("kept"):
            await push(queue, "kept", "anon:a", "198.51.100.2")
            await greedy(queue, 31)  # each from another address
            assert "Queue is full" in await push(queue, "polite", "anon:polite", "198.51.100.1")
            monkeypatch.setattr(fair_queue, "LISTEN_S", 0.0)
            assert await push(queue, "polite", "anon:polite", "198.51.100.1") == ""
            assert len(queue) == 2

    run(both())


def test_a_single_user_has_the_whole_queue(queue):
    async def alone() -> None:
        assert [await push(queue, f"{i}", "", "127.0.0.1") for i in range(32)] == [""] * 32

    run(alone())


def test_a_session_belongs_to_the_known_visitor_who_used_it_first(queue):
    async def all_of_them() -> None:
        assert await push(queue, "s", "anon:ada", "198.51.100.1") == ""
        assert "belongs to another visitor" in await push(queue, "s", "anon:bob", "198.51.100.2")
        assert "belongs to another visitor" in await push(queue, "s", "anon:new", "198.51.100.2", is_known=False)
        # A client without cookies is another visitor each time.
        assert await push(queue, "api", "anon:1", "198.51.100.3", is_known=False) == ""
        assert await push(queue, "api", "anon:2", "198.51.100.3", is_known=False) == ""

    run(all_of_them())


def test_only_so_many_sessions_are_remembered():
    claims = Claims(sessions=10)
    for number in range(100):
        claims.claim(str(number), "anon:ada")
    assert not claims.refuses("1", "anon:bob") and claims.refuses("99", "anon:bob")
