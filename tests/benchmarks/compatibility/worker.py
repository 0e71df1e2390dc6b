"""Runs rows under one library, each in a process of its own that is forked after the imports.

python -m tests.benchmarks.compatibility.worker ours|stock CHECKPOINTS OUT < names of rows, one on a line
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tests.benchmarks.compatibility.names import CRASH


def main(library: str, checkpoints: Path, out: Path) -> None:
    if library == "ours":
        import jetmoe  # noqa: F401
    names = sys.stdin.read().splitlines()
    _import_early(names)
    from tests.benchmarks.compatibility.registry import all_rows

    rows = all_rows()
    _warm_up(library == "ours", checkpoints)
    for number, name in enumerate(names):
        start = time.monotonic()
        pid = os.fork()
        if pid == 0:
            os._exit(_run(rows[name], library == "ours", checkpoints, out / str(number)))
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status:
            late = status in (-signal.SIGALRM, -signal.SIGXCPU, -signal.SIGKILL)
            died = f"no result in {rows[name].limit} seconds" if late else f"the process ended with {status}"
            (out / f"{number}.json").write_text(json.dumps({"refusals": {"": _refusal(died)}}))
        print(
            f"{library}: {number + 1}/{len(names)} {name}, {time.monotonic() - start:.1f} s",
            file=sys.stderr,
            flush=True,
        )
    assert library == "ours" or "jetmoe" not in sys.modules


def _refusal(message: str) -> dict:
    return {"error": CRASH, "message": message, "clear": False, "claim": False, "trace": message}


def _import_early(names: list[str]) -> None:
    """What every process would otherwise import anew."""
    import datasets  # noqa: F401
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM, Trainer, pipeline  # noqa: F401
    from transformers.models.jetmoe import modeling_jetmoe  # noqa: F401
    from transformers.models.olmoe import modeling_olmoe  # noqa: F401

    if any(name.startswith("TRL") for name in names):
        from trl import DPOTrainer, RewardTrainer, SFTTrainer  # noqa: F401
    import torch._dynamo

    if any("compile" in name for name in names):
        import torch._inductor.compile_fx  # noqa: F401


def _warm_up(ours: bool, checkpoints: Path) -> None:
    """Run a row, so that what it imports and compiles lazily is not repeated by every process."""
    from tests.benchmarks.compatibility.names import LINEAR, OTHERS
    from tests.benchmarks.compatibility.place import Place
    from tests.benchmarks.compatibility.rows.lora_options import OPTIONS, check, lora

    with tempfile.TemporaryDirectory() as folder:
        place = Place(checkpoints, Path(folder), ours)
        check(place, lora(**OPTIONS[f"on {LINEAR} and {OTHERS}"]))
        for kind in ("tied", "untied", "shallow"):
            place.preload(kind)
        replace(place, four_bits=True).preload("tied")
    gc.collect()
    gc.freeze()  # otherwise each search for garbage copies the pages of the parent process


def _run(row, ours: bool, checkpoints: Path, out: Path) -> int:
    from safetensors.torch import save_file

    from tests.benchmarks.compatibility.place import Place, Refusal

    resource.setrlimit(resource.RLIMIT_CPU, (row.limit, row.limit))
    signal.alarm(6 * row.limit)  # where it waits for something
    if not os.environ.get("COMPATIBILITY_LOG"):
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    try:
        with tempfile.TemporaryDirectory() as folder:
            results = row.run(Place(checkpoints, Path(folder), ours, row.four_bits))
            assert results, "the row has no results"
    except BaseException as error:
        results = {"": Refusal.of(error)}
    refusals = {name: one.as_json() for name, one in results.items() if isinstance(one, Refusal)}
    tensors = {name: one.detach().contiguous().clone() for name, one in results.items() if name not in refusals}
    save_file(tensors, f"{out}.safetensors")
    Path(f"{out}.json").write_text(json.dumps({"refusals": refusals}))
    return 0


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
