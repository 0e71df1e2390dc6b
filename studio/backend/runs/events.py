"""The events of a training run, one JSON line each.

log = EventLog(run.folder / "events.jsonl")
log.append("log", step=10, values={"loss": 2.5})
for event in log.read(after=seen): ...                    # TrainEvent
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal, get_args

BLOCK = 64 * 1024
TrainKind = Literal[
    "log",
    "eval",
    "checkpoint",
    "routing",
    "sample",
    "audit",
    "preparing",
    "reading",
    "warning",
    "resumed",
    "done",
    "failed",
    "cancelled",
]
KINDS = get_args(TrainKind)
# What these events report must be on the disk, and so must they be: nothing reported as saved is lost in a power cut.
DURABLE = ("checkpoint", "done", "failed", "cancelled")
LARGEST = 2**53


@dataclass(frozen=True)
class TrainEvent:
    """One line of a run's `events.jsonl`. `seq` counts from 1 and continues when the run is resumed.

    kind:
        log: a point of the curves, under transformers' names: loss, learning_rate, grad_norm ...
        eval: metrics on the held-out rows: eval_loss ...
        checkpoint: the folder of a saved checkpoint.
        routing: the measured routing drift.
        sample: a sample prompt and its answer.
        audit: which parameters are trained, or which of them had a gradient.
        preparing: a part of the preparation begins; `parts` has all of them in order, and `note` what is special.
        reading: how many rows have been read, to fit a head before training.
        warning: a sentence for the user; training continues.
        resumed: the run was queued again, to be resumed; `ran_s` has the seconds that it ran since it was started or
            resumed before.
        done, failed, cancelled: the outcome; the last event, unless the run is resumed.
    """

    seq: int
    step: int
    kind: TrainKind
    values: dict[str, Any]


class EventLog:
    """The events of one run, one JSON line each; appended, never rewritten.

    One process writes at a time; any number may read. The unfinished line of a killed process is ignored.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def append(self, kind: TrainKind, step: int, values: Mapping[str, Any]) -> TrainEvent:
        """Append an event to the file; NaN and infinities become null, because JSON has neither.

        Raises:
            OSError: the disk is full, or the folder is gone.
        """
        with self._lock, self.path.open("ab+") as file:
            torn, last = _end(file)
            event = TrainEvent(last + 1, step, kind, _strict(dict(values)))
            line = json.dumps(asdict(event), allow_nan=False)
            file.write(b"\n" * torn + line.encode() + b"\n")
            if kind in DURABLE:
                file.flush()
                os.fsync(file.fileno())
        return event

    def read(self, after: int = 0) -> Iterator[TrainEvent]:
        """Yield the events whose `seq` is above `after`; the time to find them does not grow with the file."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(_start(file, after))
            for line in file:
                event = _event(line)
                if event is not None and event.seq > after and line.endswith(b"\n"):
                    yield event


def figures(events: Iterable[TrainEvent]) -> dict[str, float | None]:
    """Return the last value of every logged or evaluated figure, and the best evaluation loss."""
    last: dict[str, float | None] = {}
    for event in events:
        if event.kind in ("log", "eval"):
            last |= {"step": event.step} | {name: value for name, value in event.values.items() if _is_figure(value)}
            # The evaluation at step 0 measures the base model.
            now = event.values.get("eval_loss") if event.step else None
            losses = [loss for loss in (last.get("best_eval_loss"), now) if loss is not None and _is_figure(loss)]
            last |= {"best_eval_loss": min(losses)} if losses else {}
    return last


def _end(file: IO[bytes]) -> tuple[bool, int]:
    """Return whether the last line is unfinished, and the last `seq`."""
    size = file.seek(0, 2)
    reach = BLOCK
    while True:
        file.seek(max(0, size - reach))
        tail = file.read()
        last = next((event.seq for line in reversed(tail.splitlines()) if (event := _event(line))), 0)
        if last or reach >= size:
            return bool(tail) and not tail.endswith(b"\n"), last
        reach *= 2


def _start(file: IO[bytes], after: int) -> int:
    """Return the offset of a line before which every `seq` is at most `after`, found by bisection."""
    low, high = 0, file.seek(0, 2)
    while high - low > BLOCK:
        middle = (low + high) // 2
        file.seek(middle)
        file.readline()
        start = file.tell()
        event = _event(file.readline())
        if event is not None and event.seq <= after and start < high:
            low = start
        else:
            high = middle
    return low


def _event(line: bytes) -> TrainEvent | None:
    """Return the event of a line, or None if it has none: an unfinished line, the rest of one, or a damaged one."""
    try:
        event = TrainEvent(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    is_sound = _is_count(event.seq) and _is_count(event.step) and event.kind in KINDS and isinstance(event.values, dict)
    return event if is_sound else None


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < LARGEST


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_figure(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
