"""C files of this package, compiled for this very processor when they are first needed (half a second each).

    library, problem = built(Path("nf4_cpu.c"))      # problem: a sentence where there is no library, else ""

Whoever calls has another, slower way; that it is taken is said once, as a warning and in the log of `jetmoe`.
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
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")


def c_compiler() -> str | None:
    return shutil.which(os.environ.get("CC", "gcc")) or shutil.which("cc") or shutil.which("clang")


@cache
def built(source: Path) -> tuple[ctypes.CDLL | None, str]:
    """The library of a C file and, where it can't be built, a sentence why and what to do."""
    compiler = c_compiler()
    if compiler is None:
        return None, _announced("No C compiler was found; install gcc for faster answers on this processor.")
    # In a folder of our own that is gone once the library is loaded: nobody can put another in its place.
    with tempfile.TemporaryDirectory(prefix="jetmoe-") as folder:
        library = Path(folder) / source.with_suffix(".so").name
        command = [compiler, *FLAGS, str(source), "-lm", "-o", str(library)]
        try:
            subprocess.run(command, capture_output=True, text=True, check=True)
            return ctypes.CDLL(str(library)), ""
        except (OSError, subprocess.CalledProcessError) as error:
            logger.warning("%s failed: %s", " ".join(command), getattr(error, "stderr", "") or error)
    return None, _announced(
        f"The C compiler {compiler} can't build {source.name} (the log says why), so answers are slower: "
        "install gcc with its OpenMP, or set CC to a compiler that works."
    )


def function(source: Path, name: str, arguments: list) -> tuple[Callable[..., None] | None, str]:
    """A function of a C file that returns nothing, by the ctypes of its arguments; and the problem, as of `built`."""
    library, problem = built(source)
    if library is None:
        return None, problem
    # Compiled for a processor that the compiler does not know, a file may lack what needs that processor.
    found = getattr(library, name, None)
    if found is None:
        return None, _announced("The C compiler is too old for this processor; install a newer gcc for faster answers.")
    found.argtypes, found.restype = arguments, None
    return found, ""


def _announced(problem: str) -> str:
    warnings.warn(problem, stacklevel=3)
    logger.warning(problem)
    return problem
