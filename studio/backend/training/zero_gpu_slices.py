"""Training on a ZeroGPU Space: a run goes on in slices of GPU time for as long as its visitor stays.

    for sentence in slices(jobs, run.id):        # in an event of the page, whose visitor's quota it takes
        ...

Every slice is a process of its own that resumes the run from its last checkpoint, as after any other interruption.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import torch

from studio.backend.runs.run import Run
from studio.backend.runs.store import RunStore
from studio.backend.system import zero_gpu
from studio.backend.training.queue import Jobs
from studio.backend.training.run import carry_out
from studio.errors import StudioError

SLICE_S = 40.0
RESERVE_S = 20.0
"""For the step that a slice ends with, and its checkpoint."""
POLL_S = 1.0
LEFT = "Nobody watched it, and on this Space a run takes its visitor's GPU time. It can be resumed."
_gpu = threading.Lock()
"""One slice at a time."""


def slices(jobs: Jobs, run_id: str) -> Iterator[str]:
    """Carries a queued run out to its end while it is iterated over, and says how far it is.

    Where the iterator is closed before the end, the run is interrupted and can be resumed.

    Raises:
        StudioError: the run failed.
        gradio.Error: of `spaces`, such as that the visitor's quota is used up.
    """
    try:
        while (run := jobs.store.get(run_id)).state in ("queued", "running"):
            if run.state == "queued" and jobs.place(run_id) == 1 and _gpu.acquire(blocking=False):
                try:
                    _go_on(jobs.store, run_id)
                finally:
                    _gpu.release()
            else:
                time.sleep(POLL_S)
            yield _progress(jobs, run_id)
    finally:
        _leave(jobs, run_id)


def _go_on(store: RunStore, run_id: str) -> None:
    try:
        problem = _slice(run_id, SLICE_S)
    finally:
        store.reconcile()  # the GPU's time may have been over before the slice was
    if problem:
        raise StudioError(problem)


@zero_gpu.lent(lambda run_id, seconds: seconds + RESERVE_S)
def _slice(run_id: str, seconds: float) -> str:
    """Why the run failed; empty where it is done or back in the queue."""
    torch.set_num_threads(1)  # those of the process that it was forked from are not here
    try:
        carry_out(run_id, seconds=seconds)
    except StudioError as error:
        return str(error)
    return ""


def _leave(jobs: Jobs, run_id: str) -> None:
    if any(run.id == run_id for run in jobs.store.queue()):
        jobs.store.finish(run_id, "interrupted", LEFT)


def _progress(jobs: Jobs, run_id: str) -> str:
    run: Run = jobs.store.get(run_id)
    place = jobs.place(run_id)
    return f"“{run.name}”: {run.step} steps" if place <= 1 else f"“{run.name}” waits for {place - 1} other runs"
