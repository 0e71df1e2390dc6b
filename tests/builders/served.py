"""The studio's page over HTTP, in this process.

with serving(engine, Exposure()) as url: ...      # over any engine
with toy_studio(folder) as toy: ...               # over a toy whose decoding steps a test can hold
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from studio.backend.chat.engine import Engine
from studio.backend.hosting.exposure import Exposure
from studio.backend.training.queue import Jobs
from studio.ui.page.layout import build, launch_settings
from tests.builders.gate import Gate
from tests.builders.ports import free_port
from tests.builders.toy_folder import spelling_toy


@contextmanager
def serving(engine: Engine, exposure: Exposure) -> Iterator[str]:
    jobs, port = Jobs(), free_port()
    page, settings = build(engine, jobs), launch_settings(engine, jobs, exposure)
    page.launch(server_name=exposure.host, server_port=port, prevent_thread_lock=True, quiet=True, **settings)
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        page.close()


class Steps(Gate):
    """Decoding steps of an engine."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine

    def hold(self) -> None:
        """Hold the steps of the loaded model, which may have changed."""
        decoder = self._engine._decoder
        assert decoder is not None
        if decoder.step != self._step:
            self._plain, decoder.step = decoder.step, self._step  # type: ignore[method-assign]
        super().hold()

    def _step(self, token_id: int):
        self.wait()
        return self._plain(token_id)


@dataclass(frozen=True)
class ToyStudio:
    url: str
    engine: Engine
    steps: Steps
    model: Path


@contextmanager
def toy_studio(folder: Path) -> Iterator[ToyStudio]:
    model = spelling_toy(folder, expert_groups=[0, 0, 1, 1], max_position_embeddings=4096)
    engine = Engine()
    engine.load(str(model), precision="fp32")
    with serving(engine, Exposure()) as url:
        yield ToyStudio(url, engine, Steps(engine), model)
