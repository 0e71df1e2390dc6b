"""`bench viewers`: many pages that watch one run: each asks once a second for new events, at times for the list.

    viewers("http://127.0.0.1:7860/", pages=100, seconds=60)       # of a studio that runs
    viewers(None, pages=100, seconds=60)                            # of one that is started for it

The run may be trained meanwhile; the studio's own process is measured where it was started here.
"""

from __future__ import annotations

import asyncio
import random
import socket
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psutil

from studio.backend.bench import Report, machine
from studio.backend.runs import RunStore
from studio.errors import StudioError

LIST_EVERY = 5
ROOT = Path(__file__).parents[2]
MIB = 2**20


def viewers(url: str | None, pages: int, seconds: int) -> Report:
    """Poll p95 in milliseconds, polls that failed, and what the server's memory grew by.

    Raises:
        StudioError: no studio answers there, or there is no run to watch.
    """
    runs = RunStore().list()
    if not runs:
        raise StudioError(
            "There is no run to watch. Start one: `python -m studio train starter/lora_experts data=identity`."
        )
    run = next((each for each in runs if each.state in ("running", "queued")), runs[0])
    work = {"bench": "viewers", "viewers": pages, "seconds": seconds, "run": run.name, "state": run.state}
    with _studio(url) as (address, process):
        row = asyncio.run(_watch(address, run.id, pages, seconds, process))
    return {"machine": machine(), "work": work, "rows": [{"system": "jetmoe-studio", **row}]}


async def _watch(url: str, run_id: str, pages: int, seconds: int, process: psutil.Process | None) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=pages)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=30) as client:
        component = await _component(client)
        sessions = [uuid.uuid4().hex for _ in range(pages)]
        opened = [await _open(client, component, run_id, session) for session in sessions]
        before = process.memory_info().rss if process else 0
        polls = await asyncio.gather(*(_view(client, component, run_id, session, seconds) for session in sessions))
    took = sorted(each for page in polls for each, good in page if good)
    figures = {
        "open_p50_ms": round(1000 * statistics.median(opened), 1),
        "polls": sum(map(len, polls)),
        "failed": sum(not good for page in polls for _, good in page),
        "poll_p50_ms": round(1000 * statistics.median(took), 1),
        "poll_p95_ms": round(1000 * took[int(0.95 * (len(took) - 1))], 1),
    }
    if process:
        after = process.memory_info().rss
        figures |= {"server_mib": round(after / MIB), "grew": round(after / before - 1, 3)}
    return figures


async def _open(client: httpx.AsyncClient, component: int, run_id: str, session: str) -> float:
    """Seconds until a page's first answer, for which the server makes its session; pages are opened one by one."""
    start = time.monotonic()
    await _ask(client, _asked(component, session, "run_events", [run_id, 0]))
    return time.monotonic() - start


async def _view(
    client: httpx.AsyncClient, component: int, run_id: str, session: str, seconds: int
) -> list[tuple[float, bool]]:
    """(seconds, whether it was answered) of each request of one page."""
    await asyncio.sleep(random.random())  # pages are not opened at the same moment
    seen, took = 0, []
    end = time.monotonic() + seconds
    for number in count():
        begun = time.monotonic()
        if begun >= end:
            break
        # As `studio/ui/runs/runs.js` does.
        asked = [("run_events", [run_id, seen])] + [("run_list", None)] * (number % LIST_EVERY == 0)
        for name, data in asked:
            start = time.monotonic()
            answer = await _ask(client, _asked(component, session, name, data))
            took.append((time.monotonic() - start, answer is not None))
            events = (answer or {}).get("events") or []
            seen = events[-1]["seq"] if events else seen
        await asyncio.sleep(max(0.0, 1 - (time.monotonic() - begun)))
    return took


def _asked(component: int, session: str, name: str, data: Any) -> dict[str, Any]:
    return {"fn_name": name, "data": data, "component_id": component, "session_hash": session}


async def _ask(client: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any] | None:
    try:
        response = await client.post("gradio_api/component_server", json=body)
        return response.json() if response.status_code == 200 else None
    except httpx.HTTPError:
        return None


async def _component(client: httpx.AsyncClient) -> int:
    """The number of the panel on the page."""
    try:
        components = (await client.get("config")).json()["components"]
        return next(each["id"] for each in components if each["props"].get("elem_id") == "runs")
    except (httpx.HTTPError, ValueError, KeyError, StopIteration) as error:
        raise StudioError(f"No studio answers at {client.base_url}. Start it, or leave out --url.") from error


@contextmanager
def _studio(url: str | None) -> Iterator[tuple[str, psutil.Process | None]]:
    """The address of a studio, and its process where it was started for this."""
    if url is not None:
        yield url, None
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "app.py", "--port", str(port)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        address = f"http://127.0.0.1:{port}/"
        _wait(address, process)
        yield address, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def _wait(address: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise StudioError("The studio did not start. Run `python app.py`, and see what it says.")
        try:
            httpx.get(address, timeout=5)
            return
        except httpx.HTTPError:
            time.sleep(0.5)
    raise StudioError("The studio did not start in five minutes. Run `python app.py`, and see what it says.")
