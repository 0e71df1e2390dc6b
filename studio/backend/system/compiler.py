"""The C++ compiler that torch.compile uses on a CPU."""

import os
import shutil


def cpp_compiler() -> str | None:
    """Return the path of `$CXX`, g++ or clang++, or None if none is installed."""
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
