"""`python -m tests.benchmarks.page [routing]` prints how fast the page is in a real Chromium; `routing` measures only
the routing panel.

The long-task observer of a browser reports tasks of 50 ms or more: no report means that all were shorter.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
import numpy as np
from playwright.sync_api import Browser, Page, expect, sync_playwright
from starlette.middleware import Middleware

from jetmoe.routing import RoutingTrace
from studio.ui.common.trace_store import traces
from studio.ui.page.theme import css, theme
from studio.ui.routing.routing_panel import message, routing_panel
from studio.ui.server import scripts
from studio.ui.server.identity import Identity
from tests.builders.ports import free_port
from tests.e2e.studio_page import Server, chromium

TOKENS, PROMPT, UPDATE = 2000, 500, 16
IDLE_S = 10
WARM_MS = 500
MESSAGES = ("Receive mojo message", "SimpleWatcher::OnHandleReady")
OBSERVE = """
  window.tasks = []; window.shift = 0;
  new PerformanceObserver((list) => window.tasks.push(...list.getEntries().map((each) => each.duration)))
    .observe({ type: "longtask", buffered: true });
  new PerformanceObserver((list) => list.getEntries().forEach((each) => {
    if (!each.hadRecentInput) window.shift += each.value;
  })).observe({ type: "layout-shift", buffered: true });
"""
PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


def trace_of_the_starter() -> RoutingTrace:
    """A random trace in the shape of the starter's: 30 layers, 12 experts in 4 copies."""
    random, shape = np.random.default_rng(0), (30, 2, TOKENS)
    copies = random.integers(0, 4, shape)
    return RoutingTrace(
        token_ids=np.arange(TOKENS, dtype=np.int32),
        texts=tuple(f" word{number}" if number % 20 else "\n" for number in range(TOKENS)),
        is_prompt=np.arange(TOKENS) < PROMPT,
        experts=(3 * copies[..., None] + np.arange(3)).astype(np.uint8),
        gates=np.full((*shape, 3), 1 / 3, dtype=np.float16),
        entropy=random.uniform(1, 2, shape).astype(np.float16),
        kinds=("MoA", "MoE"),
        gates_sum_to_one=True,
        groups=np.repeat(np.arange(4, dtype=np.uint8), 3),
    )


@contextmanager
def panel_alone() -> Iterator[str]:
    """Serve the routing panel with a button that streams an answer into it, 10 updates a second."""
    trace = trace_of_the_starter()

    def stream() -> Iterator[str]:
        trace_id = traces.open(trace)
        for end in [*range(PROMPT, TOKENS, UPDATE), TOKENS]:
            yield message(trace_id, trace[:end], 0 if end == PROMPT else end - UPDATE, 0, 0)
            time.sleep(0.1)

    with gr.Blocks(fill_width=True, analytics_enabled=False) as page:
        panel = routing_panel()
        gr.Button("Stream", elem_id="stream").click(stream, None, panel, show_progress="hidden")
    port = free_port()
    page.queue().launch(
        server_port=port, prevent_thread_lock=True, quiet=True, theme=theme(), css=css(), ssr_mode=False,
        app_kwargs={"routes": scripts.routes(), "middleware": [Middleware(Identity)]},
    )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        page.close()


def observed(browser: Browser) -> Page:
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.set_default_timeout(120_000)
    page.add_init_script(OBSERVE)
    return page


class Tasks:
    """The tasks of a page's main thread since the object was made or was last asked."""

    def __init__(self, browser: Browser, page: Page) -> None:
        self.browser, self.page = browser, page
        self._begin()

    def _begin(self) -> None:
        self.page.evaluate("window.tasks = []")
        self.browser.start_tracing(page=self.page, categories=["toplevel", "devtools.timeline"])
        self.page.wait_for_timeout(WARM_MS)

    def longest(self) -> str:
        """The longest task by the clock, and by the processor time, which other programs do not lengthen."""
        own = work_by_task(json.loads(self.browser.stop_tracing())["traceEvents"])
        tasks = self.page.evaluate("window.tasks")
        self._begin()
        clock = f"{max(tasks):.0f} ms ({len(tasks)} above 50 ms)" if tasks else "below 50 ms"
        return f"{clock}, {max(own, default=0):.0f} ms of processor time"


def work_by_task(events: list[dict]) -> list[float]:
    """Return the milliseconds of processor time that the page works in each task of its main thread.

    The messages of a task are left out, because those of the trace itself and of Playwright take long.
    """
    threads = [event for event in events if event["name"] == "thread_name"]
    main = {(each["pid"], each["tid"]) for each in threads if each["args"]["name"] == "CrRendererMain"}
    timed = [each for each in events if each.get("tdur") and (each["pid"], each["tid"]) in main]
    begun = min(each["ts"] for each in timed) + 1000 * WARM_MS
    work, end = [0.0], 0.0
    for event in sorted(timed, key=lambda each: (each["ts"], -each["dur"])):
        if event["name"] == "ThreadControllerImpl::RunTask":
            work.append(0.0)
        elif event["name"] not in MESSAGES and event["ts"] >= max(end, begun):
            work[-1] += event["tdur"] / 1000
            end = event["ts"] + event["dur"]
    return work


def measure_routing(browser: Browser) -> dict[str, str]:
    """Measure the panel with everything open."""
    figures = {}
    with panel_alone() as url:
        page = observed(browser)
        page.goto(url)
        page.locator("#stream").click()
        expect(page.locator(".rp-tok").first).to_be_visible()
        for summary in page.locator("#routing summary").all():
            if summary.evaluate("node => !node.parentElement.open"):
                summary.click()
        tasks = Tasks(browser, page)
        expect(page.locator(".rp-root")).to_have_attribute("data-tokens", str(TOKENS), timeout=120_000)
        figures["longest task while 2,000 tokens arrive"] = tasks.longest()
        slider = page.get_by_role("slider", name="Layer")
        for layer in (3, 20, 29):
            slider.fill(str(layer))
            page.wait_for_timeout(500)
        figures["longest task when the layer changes"] = tasks.longest()
        for token in range(0, 60, 5):
            page.locator(".rp-answer-tokens .rp-tok").nth(token).hover()
        figures["longest task when the pointer moves over tokens"] = tasks.longest()
        for _ in range(4):
            page.locator(".rp-token-table .rp-scroll").evaluate("node => (node.scrollTop += node.scrollHeight / 4)")
            page.wait_for_timeout(200)
        figures["longest task when the table scrolls"] = tasks.longest()
        page.close()
    return figures


class App(Server):
    script = ("app.py",)


def measure_page(browser: Browser) -> dict[str, str]:
    """Measure the whole page, over a home in which the starter is built."""
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        server = App(free_port(), Path(folder) / "log.txt")
        figures["server ready after app.py"] = f"{time.perf_counter() - begun:.1f} s"
        try:
            page = observed(browser)
            page.goto(server.url)
            expect(page.locator(".status-ready")).to_be_visible(timeout=300_000)
            page.wait_for_timeout(3000)
            figures["first paint"] = f"{page.evaluate(PAINT) / 1000:.2f} s"
            figures["layout shift while the page fills"] = f"{page.evaluate('window.shift'):.3f}"
            for tab in ("Chat", "Fine-tune"):
                page.get_by_role("tab", name=tab, exact=True).click()
                page.wait_for_timeout(3000)
                figures[f"processor share of an idle page, {tab}"] = f"{idle_share(page):.1%}"
            page.close()
        finally:
            server.stop()
    return figures


def idle_share(page: Page) -> float:
    """The processor time of the page's process, as a share of one core."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "timeTicks"})

    def seconds() -> float:
        metrics = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
        return metrics["ProcessTime"]

    before = seconds()
    page.wait_for_timeout(1000 * IDLE_S)
    return (seconds() - before) / IDLE_S


def main(names: list[str]) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        measures = [measure_routing] if names == ["routing"] else [measure_page, measure_routing]
        for measure in measures:
            for name, figure in measure(browser).items():
                print(f"{name:52}{figure}", flush=True)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
