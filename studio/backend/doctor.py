"""`python -m studio doctor`: what this machine has, and what to do about what it lacks."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import psutil
import torch

from studio.backend import starter
from studio.backend.decoder import cpp_compiler
from studio.backend.home import home
from studio.backend.memory import default_dtype

NEED_DISK_GIB = 3.0
NEED_MEMORY_GIB = 2.5


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    detail: str
    remedy: str = ""


def examine() -> dict[str, Any]:
    """`{"ok", "checks": [{"name", "ok", "detail", "remedy"}]}`; `ok` is whether all checks are."""
    checks: list[Callable[[], Check]] = [_python, _torch, _memory, _disk, _starter, _compiler, _bf16]
    done = [check() for check in checks]
    return {"ok": all(check.ok for check in done), "checks": [asdict(check) for check in done]}


def _python() -> Check:
    return Check("python", sys.version_info >= (3, 11), sys.version.split()[0], "Install Python 3.11 or 3.12.")


def _torch() -> Check:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return Check("torch", True, f"{version('torch')} on {device}")


def _memory() -> Check:
    gib = psutil.virtual_memory().available / 2**30
    return Check("memory", gib >= NEED_MEMORY_GIB, f"{gib:.1f} GiB free", f"The starter needs {NEED_MEMORY_GIB} GiB.")


def _disk() -> Check:
    folder = next(path for path in [home(), *home().parents] if path.exists())
    gib = shutil.disk_usage(folder).free / 2**30
    ok = gib >= NEED_DISK_GIB or starter.ready()
    return Check("disk", ok, f"{gib:.1f} GiB free at {home()}", f"Free {NEED_DISK_GIB} GiB there, or set STUDIO_HOME.")


def _starter() -> Check:
    detail = f"ready at {starter.path()}" if starter.ready() else "not built yet; the first start builds it"
    return Check("starter model", True, detail)


def _compiler() -> Check:
    found = cpp_compiler()
    return Check("C++ compiler", found is not None, found or "none", "Install g++; until then decoding stays eager.")


def _bf16() -> Check:
    native = default_dtype("cpu") == torch.bfloat16
    return Check("bf16", True, "native" if native else "not native here: models run in fp32, at twice the memory")
