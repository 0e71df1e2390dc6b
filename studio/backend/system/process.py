"""Run Python in child processes, which can't stall or crash the server and have their own memory.

    process = spawn(["-m", "studio.backend.training.run", run.id], log=run.log)
    report = run_json(["-m", "studio", "train", "recipe.yaml", "--dry-run", "--json"])

Arguments are a list, so no shell parses them. Output goes to a file, so a child never blocks on a full pipe. The
environment contains no secrets.
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
# Variables that configure Python, its libraries and the devices. None of them holds a token or a cloud key.
KEPT = {
    "PATH", "HOME", "USER", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT", "LD_LIBRARY_PATH",
    "PYTHONPATH", "VIRTUAL_ENV", "STUDIO_HOME", "STUDIO_LOCAL", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE",
    "HF_ENDPOINT", "CC", "CXX", "SPACE_ID", "STUDIO_DEMO", "MEMORY", "CPU_CORES", "STUDIO_DISK_GIB",
}  # fmt: skip
KEPT_PREFIXES = ("LC_", "XDG_", "CUDA_", "NVIDIA_", "NCCL_", "OMP_", "GOMP_", "MKL_", "TORCH", "PYTORCH_", "TRITON_",
                 "MALLOC_", "JETMOE_", "BNB_", "PIP_")  # fmt: skip
# Settings of glibc's malloc, see mallopt(3). A training run's packs of different lengths would otherwise raise the
# threshold above which freed memory is returned to the system.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(8 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(512 * 2**20), "MALLOC_ARENA_MAX": "1"}
# Chat answers take priority over a training run, which takes hours.
NICENESS = 19
TICK_S = 0.2
# Runs Python with the remaining arguments in this process, which Linux kills when its parent (the first one) ends.
TIED = """
import ctypes, os, sys
parent, arguments = int(sys.argv[1]), sys.argv[2:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
if os.getppid() != parent:
    sys.exit(1)
os.execv(sys.executable, [sys.executable, *arguments])
"""


def spawn(arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start Python with these arguments as the leader of a new process group, which outlives this process.

    Raises:
        StudioError: the log can't be written, or the process can't be started.
    """
    try:
        with log.open("ab") as output:
            process = _start(arguments, output, subprocess.STDOUT)
    except OSError as error:
        raise StudioError(
            f"{log.parent} can't be written, or the process can't be started ({error.strerror}). Free some disk space "
            "or memory."
        ) from error
    _go_last(process.pid)
    return process


def run_json(arguments: Sequence[str], cancel: threading.Event | None = None) -> Any:
    """Run a command and return the JSON on the last line of its output; setting `cancel` kills the command.

    The command ends with this process, because nobody would read its result.

    Raises:
        StudioError: the command failed (the message is the last line of its stderr), or it was cancelled.
    """
    cancel = cancel or threading.Event()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = _start(["-I", "-S", "-c", TIED, str(os.getpid()), *arguments], output, errors)
        try:
            while process.poll() is None:
                if cancel.wait(TICK_S):
                    raise StudioError("Cancelled.")
        finally:
            end_group(process.pid, signal.SIGKILL)
            code = process.wait()
        output.seek(0)
        errors.seek(0)
        if code:
            said = errors.read().decode(errors="replace")
            if code not in (2, -signal.SIGKILL):
                logger.error("%s failed with exit code %d:\n%s", " ".join(arguments[:4]), code, said[-4000:])
            raise StudioError(_sentence(code, said))
        return json.loads(output.read().decode().splitlines()[-1])


def end_group(pid: int, number: int) -> None:
    """Send a signal to a process, or to its whole group if it leads one; no-op if the process is gone."""
    with suppress(ProcessLookupError, PermissionError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)


def killed(code: int) -> str:
    """Explain the negative exit code of a process that a signal killed."""
    if code == -signal.SIGKILL:
        return "The system killed the process, probably because memory ran out: lower batch_size or max_length."
    return f"The process was killed by signal {-code}."


def environment() -> dict[str, str]:
    """Return this process's environment without the variables that a child doesn't need."""
    kept = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith(KEPT_PREFIXES)}
    return MALLOC | kept | {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}


def _go_last(pid: int) -> None:
    """Lower the priority of a process and of its session.

    Linux divides CPU time among sessions first (sched(7), "The autogroup feature"). Without the second step, a process
    in a new session would get half of the CPU, whatever its nice value.
    """
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
    # Exit code 2 marks an error that the user can fix; the last line is its message.
    if code == 2 and lines:
        return lines[-1][:1000]
    return f"An internal error ended the process with exit code {code}. The log of the studio has the details."
