"""Unmodified transformers and PEFT, in processes that never import `jetmoe`.

    run_stock(PROGRAM, folder, out)                           # a program's text, and its arguments
    run_stock("tests.jetmoe.stock_reference", folder)         # or a module

Importing the libraries takes seconds, so one process does that for each worker, and forks another for each program.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_stock(program: str, *arguments: str | Path) -> None:
    """Raises AssertionError, with what it printed, where the program fails."""
    with tempfile.NamedTemporaryFile() as log:
        request = {"program": program, "arguments": list(map(str, arguments)), "log": log.name}
        server = _server()
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        status = server.stdout.readline()
        assert status == "0\n", f"stock ended with {status!r}:\n{Path(log.name).read_text()[-4000:]}"


@cache
def _server() -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.builders.stock"]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _serve() -> None:
    import peft  # noqa: F401
    import transformers
    from transformers.models.jetmoe import modeling_jetmoe  # noqa: F401
    from transformers.models.olmoe import modeling_olmoe  # noqa: F401

    assert transformers and "jetmoe" not in sys.modules
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os._exit(_run(**json.loads(line)))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _run(program: str, arguments: list[str], log: str) -> int:
    with Path(log).open("wb") as output:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(output.fileno(), stream.fileno())
    sys.argv = [program, *arguments]
    try:
        if "\n" in program:
            exec(compile(program, "<stock>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_module(program, run_name="__main__")
        assert "jetmoe" not in sys.modules
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    _serve()
