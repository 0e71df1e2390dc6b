"""A ZeroGPU Space in the Hub's frame; `tests/e2e/test_zero_gpu.py` has the rest of ZeroGPU, without a frame."""

from pathlib import Path

import pytest
from playwright.sync_api import Playwright, expect

from tests.builders.toy_folder import spelling_toy
from tests.e2e.space.surroundings import HOST, HUB, ROOT, surroundings
from tests.e2e.studio_page import SLOW, StudioPage, chromium, settle
from tests.e2e.zero_gpu_space import ZeroGpu

# The studio is that of the Space, whose folder is searched first.
START = "from tests.e2e.zero_gpu_space import main; raise SystemExit(main())"


@pytest.fixture
def gpu():
    made = ZeroGpu()
    yield made
    made.close()


def test_an_answer_in_the_frame_uses_a_lent_gpu(playwright: Playwright, gpu: ZeroGpu, tmp_path: Path):
    model = spelling_toy(tmp_path / "models" / "toy", max_position_embeddings=4096)
    variables = gpu.environment | {"PYTHONPATH": str(ROOT)}
    with surroundings(tmp_path, model, START, **variables) as space:
        rules = ", ".join(f"MAP {host} 127.0.0.1:{space.port}" for host in (HUB, HOST))
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", f"--host-resolver-rules={rules}"]
        )
        page = browser.new_page(ignore_https_errors=True)
        page.goto(space.frame)
        (frame,) = page.main_frame.child_frames
        expect(frame.locator(".status-ready")).to_be_visible(timeout=SLOW)
        settle(frame)
        chat = StudioPage(frame, "")
        chat.set_length(4)
        assert chat.ask_and_wait("Say 7")
        assert gpu.paths()[-3:] == ["/schedule", "/allow", "/release"]
        browser.close()
