"""The studio's page over HTTP, in this process: `with serving(engine, Exposure()) as url: ...`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from studio.backend.engine import Engine
from studio.backend.exposure import Exposure
from studio.backend.jobs import Jobs
from studio.ui.layout import build, launch_settings
from tests.e2e.studio_page import free_port


@contextmanager
def serving(engine: Engine, exposure: Exposure) -> Iterator[str]:
    jobs, port = Jobs(), free_port()
    page, settings = build(engine, jobs), launch_settings(jobs, exposure)
    page.launch(server_name=exposure.host, server_port=port, prevent_thread_lock=True, quiet=True, **settings)
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        page.close()
