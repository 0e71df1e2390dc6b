"""Training runs as pages show them, read from disk once for all viewers.

    views = RunViews(RunStore())
    views.listing(owner)["runs"][0]["state"]            # an owner's runs, latest first; the empty owner sees all
    views.listing(owner, since=version)                 # only what has changed since an earlier answer
    views.events(run_id, after=120, owner=owner)["events"]      # the new events of one run
    views.comparison([first, second], owner)["settings"]
    views.settings(run_id, owner)["sections"]           # all settings of a run
    views.log(run_id, after=-1, owner=owner)["text"]    # the end of its log

Another owner's run is treated as missing unless it is shared; then everybody who has its id can view it. The list, and
the events of each run, are read from disk at most once a second, however many pages ask. A run that has ended is not
read again until its row changes. All results are plain data.

Code that must not wait for the disk, such as an event loop, refreshes in a thread first:

    if views.is_due(run_id):
        await anyio.to_thread.run_sync(views.refresh, run_id)
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from jetmoe.adapters.files import CONFIG, is_classifier
from studio.backend.recipe import DEFAULTS, Recipe, sections
from studio.backend.recipe_labels import label
from studio.backend.runs.comparison import differences, side_by_side
from studio.backend.runs.events import TrainEvent, figures
from studio.backend.runs.log_file import read_log
from studio.backend.runs.run import Run, data_name, file_name, in_queue
from studio.backend.runs.store import RunStore
from studio.errors import StudioError

READ_EVERY_S = 1.0
# A process may append its last event a moment after it has stored its outcome.
SETTLED_S = 10.0
EVENTS_A_CALL = 500
COMPARED = 6
"""Maximum number of runs in one comparison."""
KEPT_RUNS = 16
"""Number of runs whose events stay in memory: those used last."""
TAIL = 256 * 1024
"""Bytes to read at the end of a run's events. They include the last `log` event, before samples and routing."""
ALIVE = ("queued", "running")


class _Seen(NamedTuple):
    """The list as last read. It is replaced as one value, so that readers never see a mix of old and new."""

    runs: dict[str, Run]
    rows: dict[str, dict[str, Any]]
    notice: str = ""
    version: int = 0
    """The number of the last reading that found a change."""
    changed: dict[str, int] = {}
    """The version in which each row changed last."""
    gone: dict[str, tuple[int, str]] = {}
    """The version in which each deleted run was gone, and its owner."""


class RunViews:
    """Read-only views for any number of pages and threads. Only the first read makes other readers wait."""

    def __init__(self, store: RunStore) -> None:
        self.store = store
        self._reading, self._remembering = threading.Lock(), threading.Lock()
        self._read_at = float("-inf")
        self._seen: _Seen | None = None
        self._since = uuid.uuid4().hex[:8]
        """The start of the versions of this object's answers: those of an earlier server are not comparable."""
        self._steps: dict[str, tuple[Run, int | None]] = {}
        self._histories: OrderedDict[str, _History] = OrderedDict()

    def is_due(self, *run_ids: str) -> bool:
        """Return whether the list, or the events of one of these runs, would be read from disk now."""
        if self._seen is None or time.monotonic() - self._read_at >= READ_EVERY_S:
            return True
        known = [run for run_id in run_ids if (run := self._seen.runs.get(run_id))]
        return any(run.id not in self._histories or self._histories[run.id].is_due(run) for run in known)

    def refresh(self, *run_ids: str) -> None:
        """Read the list and these runs, if they are due."""
        self._refresh()
        for run_id in run_ids:
            if run := self._find(run_id)[0]:
                self._history(run)

    def listing(self, owner: str = "", since: str = "") -> dict[str, Any]:
        """Return `{"runs": [row], "notice", "version", "whole", "gone": [id]}`, latest run first.

        If the list can't be read, the notice gives the reason and the rows are those read last.

        Args:
            since: the version of an earlier answer. The rows are those that have changed since then, and `gone` has
                the ids of deleted runs; `whole` is false. All rows are returned if the version is unknown.
        """
        seen = self._refresh()
        start, _, number = since.partition("-")
        is_known = start == self._since and number.isdecimal()
        after = int(number) if is_known else -1
        rows = [
            row for run_id, row in seen.rows.items() if seen.changed[run_id] > after and seen.runs[run_id].is_of(owner)
        ]
        gone = [run_id for run_id, (at, whose) in seen.gone.items() if is_known and at > after and owner in ("", whose)]
        return {
            "runs": rows, "notice": seen.notice, "version": f"{self._since}-{seen.version}", "whole": not is_known,
            "gone": gone,
        }  # fmt: skip

    def events(self, run_id: str, after: int = 0, owner: str = "") -> dict[str, Any]:
        """Return `{"run": row, "events": [{seq, step, kind, values}], "more", "now"}`.

        The events are the first ones whose `seq` is above `after`; `more` is whether others follow, and `now` is this
        machine's time. The row is None if there is no such run or the owner may not see it. Its `mine` is false if the
        owner may only view the run. Its `has_owner` is true if there are other users to share the run with.
        """
        run, row = self._find(run_id)
        if run is None or row is None or not (run.shared or run.is_of(owner)):
            return {"run": None, "events": [], "more": False, "now": time.time()}
        events = self._history(run).after(after)
        told = [
            {"seq": each.seq, "step": each.step, "kind": each.kind, "values": self._told(each)}
            for each in events[:EVENTS_A_CALL]
        ]
        mine = run.is_of(owner)
        row = row | {"mine": mine, "has_owner": bool(owner), "notes": run.notes if mine else ""}
        return {"run": row, "events": told, "more": len(events) > EVENTS_A_CALL, "now": time.time()}

    def comparison(self, run_ids: Sequence[str], owner: str = "") -> dict[str, Any]:
        """Return the result of `comparison.compare` with the labels of its names, or `{"error": sentence}`."""
        try:
            return self._compare(list(dict.fromkeys(run_ids)), owner)
        except StudioError as error:
            return {"error": str(error)}

    def settings(self, run_id: str, owner: str = "") -> dict[str, Any]:
        """Return all settings of a run that the owner may see, or `{"error": sentence}`.

        Returns:
            `{"sections": [{"title", "settings": [{name, label, value, default}]}], "yaml": text}`. `default` is whether
            the value is the default.
        """
        try:
            run = self._find(run_id)[0]
            if run is None or not (run.shared or run.is_of(owner)):
                raise StudioError("There is no such run. It may have been deleted.")
            recipe = self._history(run).recipe()
        except StudioError as error:
            return {"error": self._without_home(str(error))}
        shown = replace(recipe, data=data_name(recipe.data), model=_model_name(recipe.model))
        return {"sections": [_section(title, names, shown) for title, names in sections().items()]} | {
            "yaml": shown.to_yaml()
        }

    def log(self, run_id: str, after: int = -1, owner: str = "") -> dict[str, Any]:
        """Return `{"text", "start", "next", "size"}` of a run's log; see `read_log`. Only its owner may read it."""
        run = self._find(run_id)[0]
        if run is None or not run.is_of(owner):
            return {"error": "There is no such run, or you may not read its log."}
        part = read_log(run.log, after, run.state not in ALIVE)
        return part._asdict() | {"text": self._without_home(part.text)}

    def whole_log(self, run_id: str, owner: str = "") -> Iterator[str] | None:
        """Return the parts of a run's whole log, or None if the owner has no such run."""
        run = self._find(run_id)[0]
        if run is None or not run.is_of(owner):
            return None
        return self._parts(run)

    def _parts(self, run: Run) -> Iterator[str]:
        part = read_log(run.log, 0)
        while part.text:
            yield self._without_home(part.text)
            part = read_log(run.log, part.next)

    def _compare(self, run_ids: list[str], owner: str) -> dict[str, Any]:
        found = [self._find(run_id)[0] for run_id in run_ids]
        runs = [run for run in found if run is not None and run.is_of(owner)]
        if not 2 <= len(runs) <= COMPARED or len(runs) < len(run_ids):
            raise StudioError(f"Choose 2 to {COMPARED} runs from the list to compare.")
        histories = {run.id: self._history(run) for run in runs}
        settings = differences({run.id: histories[run.id].recipe() for run in runs})
        for name, shown in (("data", data_name), ("model", _model_name)):
            if name in settings:
                settings[name] = {run_id: shown(value) for run_id, value in settings[name].items()}
        latest = side_by_side({run_id: figures(history.after(0)) for run_id, history in histories.items()})
        return {
            "runs": [{"id": run.id, "name": run.name, "state": run.state} for run in runs],
            "settings": settings,
            "figures": latest,
            "labels": {name: label(name) for name in [*settings, *latest]},
        }

    def _told(self, event: TrainEvent) -> dict[str, Any]:
        message = event.values.get("message")
        if not isinstance(message, str):
            return event.values
        return event.values | {"message": self._without_home(message)}

    def _without_home(self, text: str) -> str:
        """Remove the path of the home, because pages must not show where folders are on the server."""
        return text.replace(f"{self.store.home.resolve()}/", "").replace(f"{self.store.home}/", "")

    def _find(self, run_id: str) -> tuple[Run | None, dict[str, Any] | None]:
        seen = self._refresh()
        return seen.runs.get(run_id), seen.rows.get(run_id)

    def _history(self, run: Run) -> _History:
        """Return the refreshed events of a run. It reads outside of the lock, so a long file blocks no other run."""
        with self._remembering:
            history = self._histories.setdefault(run.id, _History())
            self._histories.move_to_end(run.id)
            while len(self._histories) > KEPT_RUNS:
                self._histories.popitem(last=False)
        history.refresh(run)
        return history

    def _refresh(self) -> _Seen:
        if self._seen is not None and time.monotonic() - self._read_at < READ_EVERY_S:
            return self._seen
        with self._reading:
            if self._seen is None or time.monotonic() - self._read_at >= READ_EVERY_S:
                self._read_at = time.monotonic()
                self._seen = self._read(self._seen or _Seen({}, {}))
            return self._seen

    def _read(self, before: _Seen) -> _Seen:
        try:
            runs = {run.id: run for run in self.store.list()}
        except StudioError as error:
            return before._replace(notice=self._without_home(str(error)))
        self._steps = {run.id: (run, self._step_count(run)) for run in runs.values()}
        places = {run.id: place for place, run in enumerate(in_queue(runs.values()), start=1)}
        with self._remembering:
            for run_id in self._histories.keys() - runs.keys():
                del self._histories[run_id]
        return _newer(before, runs, {run.id: self._row(run, places.get(run.id, 0)) for run in runs.values()})

    def _step_count(self, run: Run) -> int | None:
        before, steps = self._steps.get(run.id, (None, None))
        return steps if steps or run == before else _last_step_count(run.events.path)

    def _row(self, run: Run, place: int) -> dict[str, Any]:
        names = ("id", "name", "state", "created", "started", "ended", "step", "best_eval_loss", "shared")
        written = _written(run.adapter / CONFIG)  # PEFT writes it last
        return {name: getattr(run, name) for name in names} | {
            "message": self._without_home(run.message),
            "model": _model_name(run.model),
            "data": data_name(run.data),
            "steps": self._steps[run.id][1],
            "place": place,
            "cancel_requested": run.cancel_requested,
            "folder_exists": run.folder_exists,
            "has_adapter": written is not None,
            "classifies": written is not None and _classifies(run.adapter, written),
        }


class _History:
    """The events of one run that have been read, and its recipe."""

    def __init__(self) -> None:
        self._reading = threading.Lock()
        self._run: Run | None = None
        self._read_at = float("-inf")
        self._is_settled = False
        self._events: list[TrainEvent] | None = None
        """Each read creates a new list, so that iterating over an old one is safe."""
        self._recipe: Recipe | None = None

    def is_due(self, run: Run) -> bool:
        if self._events is None:
            return True
        return time.monotonic() - self._read_at >= READ_EVERY_S and not (self._is_settled and run == self._run)

    def refresh(self, run: Run) -> None:
        if not self.is_due(run):
            return
        with self._reading:
            if not self.is_due(run):
                return
            # Set before reading, so that events written meanwhile are found the next time.
            self._read_at = time.monotonic()
            ended = run.ended if run.state not in ALIVE else None
            self._is_settled = ended is not None and time.time() - ended > SETTLED_S
            self._run, events = run, self._events or []
            with suppress(OSError):  # deleted by hand; the row says so
                events = [*events, *run.events.read(after=events[-1].seq if events else 0)]
            self._events = events

    def after(self, seq: int) -> list[TrainEvent]:
        events = self._events or []
        return events[bisect_right(events, seq, key=lambda event: event.seq) :]

    def recipe(self) -> Recipe:
        """Return the settings of the run.

        Raises:
            StudioError: the run's folder is gone or damaged.
        """
        with self._reading:
            assert self._run is not None, "refreshed before"
            self._recipe = self._recipe or self._run.recipe()
            return self._recipe


def _newer(before: _Seen, runs: dict[str, Run], rows: dict[str, dict[str, Any]]) -> _Seen:
    """Return the list as read now, with a new version if it has changed."""
    new = [run_id for run_id, row in rows.items() if row != before.rows.get(run_id)]
    gone = before.runs.keys() - runs.keys()
    version = before.version + bool(new or gone)
    changed = {run_id: before.changed.get(run_id, version) for run_id in rows} | dict.fromkeys(new, version)
    lost = before.gone | {run_id: (version, before.runs[run_id].owner) for run_id in gone}
    return _Seen(runs, rows, "", version, changed, lost)


def _section(title: str, names: list[str], recipe: Recipe) -> dict[str, Any]:
    values = {name: getattr(recipe, name) for name in names}
    return {
        "title": title,
        "settings": [
            {"name": name, "label": label(name), "value": value, "default": value == DEFAULTS[name]}
            for name, value in values.items()
        ],
    }


def _written(file: Path) -> int | None:
    """Return the file's modification time in nanoseconds, or None if it is missing."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return None


@lru_cache(maxsize=1024)
def _classifies(adapter: Path, written: int) -> bool:
    """Return whether the adapter is a classifier; cached per write, because all rows are rebuilt every second."""
    return is_classifier(adapter)


def _last_step_count(path: Path) -> int | None:
    """Return the total steps of a run from the last point of its curves, or None before the first point."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        with suppress(ValueError, KeyError, TypeError, ZeroDivisionError):  # unfinished, or another kind of event
            event = json.loads(line)
            return round(event["step"] / event["values"]["progress"])
    return None


def _model_name(model: str) -> str:
    """Return the name of a model folder; ids, which may contain a slash, stay unchanged."""
    is_path = model.startswith(("~", ".", "/", "\\")) or PureWindowsPath(model).is_absolute()
    return file_name(model) if is_path else model
