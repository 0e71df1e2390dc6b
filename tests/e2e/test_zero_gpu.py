"""The studio on a ZeroGPU Space, which `zero_gpu_space.py` plays: who gets the GPU, when, and what comes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, Page, expect

from studio.backend.runs.store import RunStore
from studio.backend.system import zero_gpu
from tests.builders.adapters import finished_run
from tests.builders.ports import free_port
from tests.builders.toy_folder import spelling_toy
from tests.builders.waiting import until
from tests.e2e.classify_page import ClassifyPage
from tests.e2e.finetune_page import FinetunePage
from tests.e2e.studio_page import SLOW, Server, StudioPage, choose
from tests.e2e.zero_gpu_space import ZeroGpu

RUN = {"eval_steps": 20, "save_steps": 20, "max_length": 64, "sample_tokens": 2}


class ZeroServer(Server):
    script = ("-m", "tests.e2e.zero_gpu_space")

    def stop(self) -> None:
        """With the processes that a GPU was lent to, which end with the machine on a Space."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        super().stop()
        for child in children:
            child.kill()


class Space:
    def __init__(self, folder: Path) -> None:
        self.gpu, self.store = ZeroGpu(), RunStore(folder / "home")
        self.model = spelling_toy(folder / "toy", max_position_embeddings=4096)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("STUDIO_HOME", str(self.store.home))
            finished_run(self.model, name="Lawyer")
        environment = self.gpu.environment | {"STUDIO_HOME": str(self.store.home)}
        self.server = ZeroServer(free_port(), folder / "log.txt", "--model", str(self.model), **environment)

    def lent_since(self, count: int) -> list[str]:
        return self.gpu.paths()[count:]

    def close(self) -> None:
        self.server.stop()
        self.gpu.close()


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    made = Space(tmp_path_factory.mktemp("space"))
    yield made
    made.close()


@pytest.fixture
def chat(page: Page, space: Space) -> StudioPage:
    return StudioPage(page, space.server.url).open()


def test_an_answer_its_routing_and_an_adapters_come_from_the_process_with_the_gpu(chat: StudioPage, space: Space):
    expect(chat.page.locator("#status")).to_contain_text("Answers run on ZeroGPU")
    assert space.gpu.paths()[0] == "/startup-report", "the Space is told that there is something to lend a GPU for"
    chat.set_length(12)
    before = len(space.gpu.asked)
    own = chat.ask_and_wait("Say 7")
    expect(chat.page.locator(".rp-root")).to_have_attribute("data-tokens", str(chat.shown_tokens()))
    assert chat.shown_tokens() > 12
    asked = space.gpu.asked[before:]
    assert [path for path, _ in asked] == ["/schedule", "/allow", "/release"]
    assert int(asked[0][1]["durationSeconds"]) < 30, "no more of a visitor's quota than such an answer may take"
    assert int(asked[1][1]["pid"]) != space.server.process.pid
    choose(chat.page, "adapter", "Lawyer")
    chat.page.locator("#new-chat").click()
    expect(chat.answers).to_have_count(0)
    assert chat.ask_and_wait("Say 7") != own
    chat.page.locator(".rp-compare-button").click()
    expect(chat.page.locator(".rp-difference")).to_be_visible(timeout=SLOW)


def test_stop_gives_the_gpu_back(chat: StudioPage, space: Space):
    chat.set_length(3000)
    before = len(space.gpu.asked)
    space.gpu.steps.hold()
    chat.ask("Say 7")
    chat.let_through(space.gpu.steps, 4)
    chat.stop.dispatch_event("click")
    partial = chat.wait_until_stopped(space.gpu.steps)
    expect(chat.page.locator("#stats")).to_contain_text("stopped")
    assert space.lent_since(before) == ["/schedule", "/allow", "/release"]
    longest = int(space.gpu.asked[before][1]["durationSeconds"])
    assert longest * zero_gpu.DEAREST <= zero_gpu.LONGEST_S, "no more than a day's quota, however dear the GPU"
    assert partial and chat.shown_tokens() < 2250


def test_where_no_gpu_is_free_the_message_comes_back(chat: StudioPage, space: Space):
    space.gpu.lends = False
    try:
        chat.ask("Say 7")
        expect(chat.toast).to_contain_text("No GPU was available", timeout=SLOW)
        expect(chat.box).to_have_value("Say 7")
    finally:
        space.gpu.lends = True


def test_texts_are_classified_without_one(page: Page, space: Space):
    classify = ClassifyPage(page, space.server.url).open()
    before = len(space.gpu.asked)
    classify.labels.fill("odd, even")
    classify.box.fill("7")
    classify.page.locator("#classify-go").click()
    expect(classify.result).to_contain_text("even", timeout=SLOW)
    assert space.lent_since(before) == []


def allowed(asked: list[tuple[str, dict[str, str]]]) -> set[str]:
    """The processes that were lent a GPU."""
    return {parameters["pid"] for path, parameters in asked if path == "/allow"}


def test_a_run_takes_one_slice_after_another_and_waits_for_who_left(page: Page, browser: Browser, space: Space):
    visitor = browser.new_context()
    tuning = FinetunePage(visitor.new_page(), space.server.url).open()
    before = len(space.gpu.asked)
    run_id = tuning.begin(max_steps=5000, **RUN)
    expect(tuning.toast.first).to_contain_text("while this page stays open")
    tuning.until_step(20)
    pids = until(lambda: len(found := allowed(space.gpu.asked[before:])) > 1 and found)
    assert space.lent_since(before)[:3] == ["/schedule", "/allow", "/release"]
    step = tuning.step()
    visitor.close()
    until(lambda: space.store.get(run_id).state == "interrupted")
    left = space.store.get(run_id)
    assert left.step >= step and "can be resumed" in left.message
    assert not [pid for pid in pids if psutil.pid_exists(int(pid)) and psutil.Process(int(pid)).cpu_percent(0.2) > 50]

    again = FinetunePage(page, space.server.url).open(f"?run={run_id}")
    again.until_state("Interrupted")
    again.act("Resume")
    again.until_step(left.step + 5)
    again.act("Cancel")
    again.until_state("Cancelled")
    until(lambda: space.gpu.paths()[-1] == "/release")
    assert (space.store.get(run_id).adapter / "adapter_model.safetensors").is_file()
