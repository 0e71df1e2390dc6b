"""Print security facts about the running page as JSON: `python -m studio.ui.page.page_facts`.

It runs in a separate process, because the backend must not import the page. No model is loaded.
"""

from __future__ import annotations

import json
import socket
import sys
from contextlib import redirect_stdout
from typing import Any

import httpx

from studio.backend.chat.engine import Engine
from studio.backend.training.queue import Jobs
from studio.ui.page.layout import build, launch_settings
from studio.ui.server.headers import HEADERS

CLOSED = {"monitoring": "/monitoring/summary", "run history": "/gradio_api/runs"}


def facts() -> dict[str, Any]:
    """Return `missing_headers`, `open` (endpoints that should be closed) and `answers_others` (other websites)."""
    engine, jobs = Engine(), Jobs()
    page = build(engine, jobs)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    page.launch(
        server_name="127.0.0.1", server_port=port, prevent_thread_lock=True, quiet=True, **launch_settings(engine, jobs)
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as asking:
            first = asking.get("/")
            return {
                "missing_headers": [name for name in HEADERS if name not in first.headers],
                "open": [name for name, path in CLOSED.items() if asking.get(path).status_code not in (401, 403, 404)],
                "answers_others": asking.get("/config", headers={"Origin": "https://example.org"}).status_code == 200,
            }
    finally:
        page.close(verbose=False)


if __name__ == "__main__":
    with redirect_stdout(sys.stderr):
        found = facts()
    print(json.dumps(found))
