"""Puts each fault of this folder into a copy of the repository, and expects the tests that it names to fail.

    python -m tests.faults               # all of them, some minutes
    python -m tests.faults data/ prior   # those whose path contains one of the words

A fault is a patch of one line. Its first line names the tests that catch it, as arguments of pytest. Prints a table,
and exits with 1 where a fault is not caught or its patch no longer applies.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TESTS_FAILED = 1
"""pytest's exit code; others mean that tests could not be collected, or that there are none."""


def main(words: list[str]) -> int:
    faults = [
        path
        for path in sorted(HERE.glob("*/*.patch"))
        if not words or any(word in str(path.relative_to(HERE)) for word in words)
    ]
    missed = 0
    print("| fault | caught by |\n|---|---|")
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        copy_to(copy)
        for fault in faults:
            caught = caught_by(fault, copy)
            missed += caught is None
            print(f"| {fault.parent.name}: {fault.stem.replace('_', ' ')} | {caught or 'NOTHING'} |", flush=True)
    print(f"\n{len(faults) - missed} of {len(faults)} faults are caught.")
    return 1 if missed else 0


def copy_to(folder: Path) -> None:
    """The files of the repository as they are now, committed or not."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        source, target = ROOT / name, folder / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


def caught_by(fault: Path, copy: Path) -> str | None:
    """The first test that fails with the fault; None where all pass."""
    tests = fault.read_text(encoding="utf-8").splitlines()[0].removeprefix("Caught by: ")
    subprocess.run(["git", "apply", str(fault)], cwd=copy, check=True)
    try:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *shlex.split(tests)]
        ended = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    finally:
        subprocess.run(["git", "apply", "--reverse", str(fault)], cwd=copy, check=True)
    if ended.returncode not in (0, TESTS_FAILED):
        raise RuntimeError(f"{fault.name}: pytest ended with {ended.returncode}\n{ended.stdout[-2000:]}")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", ended.stdout, re.MULTILINE)
    return failed[1] if failed else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
