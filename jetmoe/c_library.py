"""C files of this package, compiled for the local processor on first use (half a second each).

    library, problem = built(Path("nf4/cpu.c"))      # problem: a message if there is no library, else ""

Callers have a slower fallback. Its use is reported once, as a warning and in the log of `jetmoe`.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

logger = logging.getLogger("jetmoe")
FLAGS = ("-O3", "-march=native", "-shared", "-fPIC")
TIMEOUT_S = 120.0
"""A compiler needs two seconds, and more on a busy machine."""


def c_compiler() -> str | None:
    return shutil.which(os.environ.get("CC", "gcc")) or shutil.which("cc") or shutil.which("clang")


@cache
def built(source: Path) -> tuple[ctypes.CDLL | None, str]:
    """Compile a C file; return the library and "", or None and a message with the reason and the fix."""
    compiler = c_compiler()
    if compiler is None:
        return None, _announced("No C compiler was found; install gcc for faster generation on this CPU.")
    try:
        return _compiled(compiler, source), ""
    except (OSError, subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        logger.warning("%s of %s failed: %s", compiler, source, getattr(error, "stderr", "") or error)
    return None, _announced(
        f"The C compiler {compiler} can't build {source.name} (see the log), so generation is slower. "
        "Install gcc with OpenMP, or set CC to a working compiler and TMPDIR to a folder for programs."
    )


def _compiled(compiler: str, source: Path) -> ctypes.CDLL:
    # A private folder, deleted once the library is loaded, so that the file can't be replaced.
    with tempfile.TemporaryDirectory(prefix="jetmoe-") as folder:
        library = Path(folder) / source.with_suffix(".so").name
        # step.c has threads of its own, and its only pragmas of OpenMP are for vectors.
        threads = ["-fopenmp"] if "omp parallel" in source.read_text() else ["-fopenmp-simd", "-pthread"]
        command = [compiler, *FLAGS, *threads, str(source), "-lm", "-o", str(library)]
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
        return ctypes.CDLL(str(library))


def function(source: Path, name: str, arguments: list) -> Callable[..., None] | None:
    """Return a C function without a result, or None if there is none; `arguments` are its ctypes."""
    library, _ = built(source)
    if library is None:
        return None
    # If the compiler does not support this processor, functions that need its instructions are left out.
    found = getattr(library, name, None)
    if found is None:
        _announced("The C compiler is too old for this CPU; install a newer gcc for faster generation.")
        return None
    found.argtypes, found.restype = arguments, None
    return found


def _announced(problem: str) -> str:
    warnings.warn(problem, stacklevel=3)
    logger.warning(problem)
    return problem
