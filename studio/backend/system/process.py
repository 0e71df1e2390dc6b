"""Work in a process of its own: nothing it does can stall or kill the server, and its memory is its own.

    process = spawn(["-m", "studio.backend.training.run", run.id], log=run.log)
    report = run_json(["-m", "studio", "train", "recipe.yaml", "--dry-run", "--json"])

Arguments are a list, output goes to a file that nobody has to read, and the environment holds no secrets.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from studio.errors import StudioError

logger = logging.getLogger(__name__)
ROOT = Path(__file__).parents[3]
# What Python, its libraries and the devices are told by; a token or a cloud's key is in none of them.
KEPT = {
    "PATH", "HOME", "USER", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT", "LD_LIBRARY_PATH",
    "PYTHONPATH", "VIRTUAL_ENV", "STUDIO_HOME", "STUDIO_LOCAL", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE",
    "HF_ENDPOINT", "CC",
}  # fmt: skip
KEPT_PREFIXES = ("LC_", "XDG_", "CUDA_", "NVIDIA_", "NCCL_", "OMP_", "GOMP_", "MKL_", "TORCH", "PYTORCH_", "TRITON_",
                 "MALLOC_", "JETMOE_", "PIP_")  # fmt: skip
# An answer that is being written goes before a training run that takes hours.
NICENESS = 19
TICK_S = 0.2


def spawn(arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Python with these arguments, as the first of a process group; it outlives this process.

    Raises:
        StudioError: the log can't be written, or the system starts no process.
    """
    try:
        with log.open("ab") as output:
            process = _start(arguments, output, subprocess.STDOUT)
    except OSError as error:
        raise StudioError(
            f"{log.parent} can't be written, or no process be started ({error.strerror}). Free some space or memory."
        ) from error
    _go_last(process.pid)
    return process


def run_json(arguments: Sequence[str], cancel: threading.Event | None = None) -> Any:
    """What a command prints as JSON; setting `cancel` ends it.

    Raises:
        StudioError: the sentence that it ended with, or that it was cancelled.
    """
    cancel = cancel or threading.Event()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = _start(arguments, output, errors)
        try:
            while process.poll() is None:
                if cancel.wait(TICK_S):
                    raise StudioError("Stopped, as you asked.")
        finally:
            end_group(process.pid, signal.SIGKILL)
            code = process.wait()
        output.seek(0)
        errors.seek(0)
        if code:
            said = errors.read().decode(errors="replace")
            if code not in (2, -signal.SIGKILL):
                logger.error("%s ended with code %d:\n%s", " ".join(arguments[:4]), code, said[-4000:])
            raise StudioError(_sentence(code, said))
        return json.loads(output.read().decode().splitlines()[-1])


def end_group(pid: int, number: int) -> None:
    """Sends a signal to a process and, where it is the first of a group, to all of that; nothing where it is gone."""
    with suppress(ProcessLookupError, PermissionError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)


def killed(code: int) -> str:
    """What it means that a process ended by a signal."""
    if code == -signal.SIGKILL:
        return "The system killed its process, as it does when memory runs out: lower batch_size or max_length."
    return f"Its process was ended by signal {-code}."


def environment() -> dict[str, str]:
    """This process's, without what a child has no need to know."""
    kept = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith(KEPT_PREFIXES)}
    return kept | {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}


def _go_last(pid: int) -> None:
    """Leaves the processor to others, by the process and by its session: Linux shares it out among sessions first
    (sched(7), "The autogroup feature"), so that a process of a session of its own would get half, however nice."""
    with suppress(psutil.Error):
        psutil.Process(pid).nice(NICENESS)
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(NICENESS))


def _start(arguments: Sequence[str], output: Any, errors: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        env=environment(),
        start_new_session=True,
    )


def _sentence(code: int, errors: str) -> str:
    if code < 0:
        return killed(code)
    lines = [line for line in errors.splitlines() if line.strip()]
    last = lines[-1][:1000] if lines else "it said nothing"
    # By 2 the command line says that the person can fix it, and its last line says how.
    return last if code == 2 else f"The studio made a mistake: {last}"
