"""Training on a ZeroGPU Space: a run is carried out in slices of GPU time while its visitor stays on the page.

    for sentence in slices(jobs, run.id):        # in an event of the page, to use the quota of its visitor
        ...

Every slice is a separate process that resumes the run from its last checkpoint, as after any other interruption.
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
"""Seconds for the last step of a slice and its checkpoint."""
POLL_S = 1.0
LEFT = "The page was closed, and on this Space a run uses its visitor's GPU time. The run can be resumed."
_gpu = threading.Lock()
"""Held during a slice, so that only one runs at a time."""


def slices(jobs: Jobs, run_id: str) -> Iterator[str]:
    """Carry out a queued run while the iterator is consumed, and yield its progress.

    If the iterator is closed before the end, the run is interrupted and can be resumed.

    Raises:
        StudioError: the run failed.
        gradio.Error: from `spaces`, for example if the visitor's quota is used up.
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
    except Exception as error:
        # The message of an error from `spaces` is for the visitor; others have none.
        reason = getattr(error, "message", "The GPU time ended with an error.")
        _leave(jobs, run_id, f"{reason} The run can be resumed.")
        raise
    finally:
        _leave(jobs, run_id, LEFT)


def _go_on(store: RunStore, run_id: str) -> None:
    try:
        problem = _slice(run_id, SLICE_S)
    finally:
        store.reconcile()  # the GPU time may have ended before the slice
    if problem:
        raise StudioError(problem)


@zero_gpu.lent(lambda run_id, seconds: seconds + RESERVE_S)
def _slice(run_id: str, seconds: float) -> str:
    """Train for one slice; return why the run failed, or an empty string if it is done or back in the queue."""
    torch.set_num_threads(1)  # threads of the parent process don't exist after a fork
    try:
        carry_out(run_id, seconds=seconds)
    except StudioError as error:
        return str(error)
    return ""


def _leave(jobs: Jobs, run_id: str, message: str) -> None:
    if any(run.id == run_id for run in jobs.store.queue()):
        jobs.store.finish(run_id, "interrupted", message)


def _progress(jobs: Jobs, run_id: str) -> str:
    run: Run = jobs.store.get(run_id)
    place = jobs.place(run_id)
    return f"“{run.name}”: {run.step} steps" if place <= 1 else f"“{run.name}” waits for {place - 1} other runs"
