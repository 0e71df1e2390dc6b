"""`bench viewers`: benchmark many pages that watch one run.

    viewers("http://127.0.0.1:7860/", pages=100, seconds=60)       # the newest run of a running studio
    viewers(None, pages=100, seconds=180)                           # a studio that is started for the benchmark

Each page polls for new events once a second, and for the list of runs every fifth time. A studio that is started for
the benchmark trains a run and answers one chat throughout, both with the starter.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpx
import psutil

from studio.backend.bench.report import Report, machine
from studio.backend.models import catalog
from studio.backend.recipe import Recipe
from studio.backend.runs.run import Run
from studio.backend.runs.store import RunStore
from studio.backend.system.home import home
from studio.errors import StudioError

LIST_EVERY = 5
ROOT = Path(__file__).parents[3]
MIB = 2**20
WARM_S = 150
"""Seconds for a new studio to compile its model while it trains and chats."""
ALONE_S = 60
"""Seconds in which the chat is measured without viewers."""
QUESTION = "Explain in a few sentences why the sky is blue."


def viewers(url: str | None, pages: int, seconds: int) -> Report:
    """Return the times of the polls in milliseconds and the number of failed ones.

    For a studio that is started for the benchmark, the report also has its memory growth, and the speed of the chat
    with and without viewers.

    Raises:
        StudioError: no studio answers at `url`, or there is no run to watch.
    """
    work = {"bench": "viewers", "viewers": pages, "seconds": seconds}
    if url is None:
        with _studio() as (address, process, run):
            work |= {"run": run.name, "beside": "one chat and the training of that run"}
            row = asyncio.run(_measure(address, run.id, pages, seconds, process))
    else:
        run = _newest()
        work |= {"run": run.name, "state": run.state}
        row = asyncio.run(_watch(url, run.id, pages, seconds))
    return {"machine": machine(), "work": work, "rows": [{"system": "jetmoe-studio", **row}]}


def _newest() -> Run:
    runs = RunStore().list()
    if not runs:
        raise StudioError(
            "There is no run to watch. Start one: `python -m studio train starter/lora_experts data=identity`."
        )
    return next((each for each in runs if each.state in ("running", "queued")), runs[0])


async def _measure(url: str, run_id: str, pages: int, seconds: int, process: psutil.Process) -> dict[str, Any]:
    """Measure the viewers, and the chat that runs from before the first viewer until after the last."""
    answers: list[tuple[float, float, float]] = []
    chat = asyncio.create_task(_chat(url, answers))
    await asyncio.sleep(WARM_S + ALONE_S)
    came = time.monotonic()
    row = await _watch(url, run_id, pages, seconds, process)
    chat.cancel()
    with suppress(asyncio.CancelledError):
        await chat
    alone = [answer for answer in answers if came - ALONE_S <= answer[0] < came]
    beside = [answer for answer in answers if answer[0] >= came]
    return row | _speed(beside, "") | _speed(alone, "alone_")


def _speed(answers: list[tuple[float, float, float]], name: str) -> dict[str, float]:
    """Return the medians of answers, given as (completion time, seconds to the first token, tokens per second)."""
    if not answers:
        return {}
    _, first, speed = zip(*answers, strict=True)
    return {
        f"{name}ttft_s": round(statistics.median(first), 3),
        f"{name}decode_tok_s": round(statistics.median(speed), 1),
    }


async def _watch(
    url: str, run_id: str, pages: int, seconds: int, process: psutil.Process | None = None
) -> dict[str, Any]:
    before = process.memory_info().rss if process else 0
    polls = await asyncio.to_thread(_polls, url, run_id, pages, seconds)
    took = sorted(each for each, good in polls if good)
    if not took:
        raise StudioError(f"None of {len(polls)} questions about the run was answered. See the server's log.")
    figures = {
        "polls": len(polls),
        "failed": sum(not good for _, good in polls),
        "poll_p50_ms": round(1000 * statistics.median(took), 1),
        "poll_p95_ms": round(1000 * took[int(0.95 * (len(took) - 1))], 1),
    }
    if process:
        after = process.memory_info().rss
        figures |= {"server_mib": round(after / MIB), "grew": round(after / before - 1, 3)}
    return figures


def _polls(url: str, run_id: str, pages: int, seconds: int) -> list[tuple[float, bool]]:
    """Poll from threads with the standard library's client.

    The viewers share the studio's cores, and httpx takes more time for a request than the studio for its answer.

    Raises:
        StudioError: no studio answers there.
    """
    address = urlsplit(url.rstrip("/") + "/")
    with closing(_connection(address)) as connection:
        if _ask(connection, f"{address.path}watch/runs") is None:
            raise StudioError(f"No studio answers at {url}. Start it, or leave out --url.")
    with ThreadPoolExecutor(pages) as threads:
        views = [threads.submit(_view, address, run_id, seconds) for _ in range(pages)]
        return [poll for view in views for poll in view.result()]


async def _chat(url: str, answers: list[tuple[float, float, float]]) -> None:
    """Ask one question after another on one page, each in a new conversation."""
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        config = (await client.get("config")).json()
        send = next(each for each in config["dependencies"] if each["api_name"] == "send")
        values = {each["id"]: each["props"].get("value") for each in config["components"]}
        data = [QUESTION, *(values[number] for number in send["inputs"][1:])]
        asked = {"data": data, "fn_index": send["id"], "session_hash": uuid.uuid4().hex}
        while True:
            if answer := await _answer(client, asked):
                answers.append(answer)


async def _answer(client: httpx.AsyncClient, asked: dict[str, Any]) -> tuple[float, float, float] | None:
    """Return (completion time, seconds to the first token, tokens per second) of an answer; None if it is empty."""
    await client.post("gradio_api/queue/join", json=asked)
    text = ""
    async with client.stream("GET", "gradio_api/queue/data", params={"session_hash": asked["session_hash"]}) as stream:
        async for line in stream.aiter_lines():
            text = line if "decode_tok_s" in line else text
            if '"process_completed"' in line:
                break
    first, speed = (re.search(rf"{name}\W+([\d.]+)", text) for name in ("ttft_s", "decode_tok_s"))
    return (time.monotonic(), float(first[1]), float(speed[1])) if first and speed else None


def _view(address: SplitResult, run_id: str, seconds: int) -> list[tuple[float, bool]]:
    """Return (seconds, whether it was answered) for each request of one page."""
    time.sleep(random.random())  # pages are not opened at the same moment
    connection = _connection(address)
    seen, took = 0, []
    end = time.monotonic() + seconds
    for number in count():
        begun = time.monotonic()
        if begun >= end:
            break
        # The requests of `studio/ui/finetune/runs/runs.js`, with the timing of `poll.js`.
        for path in [f"watch/runs/{run_id}?after={seen}"] + ["watch/runs"] * (number % LIST_EVERY == 0):
            start = time.monotonic()
            answer = _ask(connection, address.path + path)
            took.append((time.monotonic() - start, answer is not None))
            events = (answer or {}).get("events") or []
            seen = events[-1]["seq"] if events else seen
        time.sleep(max(0.0, random.uniform(0.9, 1.1) - (time.monotonic() - begun)))
    return took


def _connection(address: SplitResult) -> HTTPConnection:
    kind = HTTPSConnection if address.scheme == "https" else HTTPConnection
    return kind(address.hostname or "", address.port, timeout=30)


def _ask(connection: HTTPConnection, path: str) -> dict[str, Any] | None:
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        text = response.read()
        return json.loads(text) if response.status == 200 else None
    except (OSError, HTTPException, ValueError):
        connection.close()  # the next request reconnects
        return None


@contextmanager
def _studio() -> Iterator[tuple[str, psutil.Process, Run]]:
    """Start a studio with a temporary home; yield its address, its process and the run that it trains."""
    catalog.prepare(catalog.STARTER.id)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "models").symlink_to((home() / "models").resolve())
        store = RunStore(Path(folder))
        run = store.create(Recipe.load("starter/lora_experts", ["data=identity", "max_steps=100000"]), "watched")
        process = subprocess.Popen(
            [sys.executable, "app.py", "--port", str(port)], cwd=ROOT, env=os.environ | {"STUDIO_HOME": folder},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            address = f"http://127.0.0.1:{port}/"
            _wait(address, process)
            yield address, psutil.Process(process.pid), run
        finally:
            _end(store, run.id)
            process.terminate()
            process.wait()


def _end(store: RunStore, run_id: str) -> None:
    """End the run before the studio, so that no trainer process is left behind."""
    store.request_cancel(run_id)
    while store.get(run_id).state in ("queued", "running"):
        time.sleep(0.5)


def _wait(address: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise StudioError("The studio did not start. Run `python app.py` to see the error.")
        try:
            httpx.get(address, timeout=5)
            return
        except httpx.HTTPError:
            time.sleep(0.5)
    raise StudioError("The studio did not start in five minutes. Run `python app.py` to see the error.")
