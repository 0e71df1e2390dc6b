"""Servers and trainers that are forked from a process with all imports, so that a schedule takes seconds.

A server is the supervisor of the training queue with the page over HTTP, whose engine loads no model; a trainer runs
`carry_out`, as in the studio.
Nothing here may compute a gradient before the fork: autograd's threads do not survive it.
"""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from studio.backend.chat.engine import Engine
from studio.backend.hosting.exposure import Exposure
from studio.backend.runs.store import RunStore
from studio.backend.system import process as child
from studio.backend.training import queue
from studio.backend.training import run as training
from studio.errors import StudioError
from studio.ui.page.layout import build, launch_settings
from tests.builders.ports import free_port
from tests.builders.waiting import until

PIDS = "pids"
READY = "ready"
UPLOADS = "gradio"
"""Gradio's folder for uploads, on the disk of the schedule."""


class Forked:
    """The part of `subprocess.Popen` that the supervisor uses."""

    port = 0
    """Of the page of a server."""

    def __init__(self, work: Callable[[], None], log: Path) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            _become(work, log)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self) -> int:
        return until(lambda: (self.poll() is not None) and self) and int(self.returncode or 0)


def start_server(home: Path) -> Forked:
    ready, port = home.parent / READY, free_port()
    ready.unlink(missing_ok=True)
    server = Forked(lambda: _serve(home, port), home.parent / "server.txt")
    server.port = port
    until(lambda: ready.exists() or server.poll() is not None)
    return server


def trainers(home: Path) -> list[psutil.Process]:
    """Return the trainers that still exist."""
    file = home.parent / PIDS
    pids = [int(line) for line in file.read_text().split()] if file.exists() else []
    found = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    return [each for each in found if each.status() != psutil.STATUS_ZOMBIE]


def _become(work: Callable[[], None], log: Path) -> None:
    """Be the new process: a session of its own, its output in the log, and no way back into the caller."""
    os.setsid()
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        work()
        code = 0
    except KeyboardInterrupt:
        code = 130
    except StudioError as error:
        os.write(2, f"{error}\n".encode())
        code = 2
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def _serve(home: Path, port: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    queue.POLL_S = 0.05
    queue.child.spawn = _spawn  # type: ignore[attr-defined]
    jobs = queue.Jobs(RunStore(home), step_s=2.0, end_s=2.0)
    jobs.open()
    engine, exposure = Engine(), Exposure()
    settings = launch_settings(engine, jobs, exposure) | {"mcp_server": False}
    build(engine, jobs).launch(
        server_name="127.0.0.1", server_port=port, prevent_thread_lock=True, quiet=True, **settings
    )
    (home.parent / READY).touch()
    while True:
        time.sleep(60)


def _spawn(arguments: Sequence[str], log: Path) -> Forked:
    run_id, home = arguments[-1], log.parents[2]

    def train() -> None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        training.carry_out(run_id)

    try:
        forked = Forked(train, log)
    except OSError as error:
        raise StudioError(f"the trainer can't be started ({error.strerror})") from error
    with (home.parent / PIDS).open("a") as file:
        file.write(f"{forked.pid}\n")
    return forked


def environment(home: Path) -> None:
    os.environ |= {
        "STUDIO_HOME": str(home), "GRADIO_TEMP_DIR": str(home.parent / UPLOADS), "GRADIO_ANALYTICS_ENABLED": "False",
    }  # fmt: skip
    child.NICENESS = 0
