"""One schedule: a run on a toy model, random faults, and what must hold afterwards."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import load_file

from studio.backend.adapters import uploads as adapters
from studio.backend.data import uploads
from studio.backend.export import kept
from studio.backend.recipe import Recipe
from studio.backend.runs.run import Run, is_alive
from studio.backend.runs.store import RunStore
from studio.backend.training.checkpoint import last_checkpoint
from studio.errors import StudioError
from tests.faults.schedules.faults import FAULTS
from tests.faults.schedules.processes import UPLOADS, Forked, environment, start_server, trainers

TRUE_STATE_S, DONE_S = 30.0, 90.0
RUN_S = 3.0
"""About how long an undisturbed run takes; faults happen in this time."""
STEPS = 12
WEIGHTS = "adapter_model.safetensors"


class Violation(AssertionError):
    """Something that must hold after faults does not."""


@dataclass
class Place:
    home: Path
    store: RunStore
    run: Run
    is_small_disk: bool
    upload: Path
    adapter: Path
    """Folders of a visitor's file and adapter, which faults may damage; there are others beside them."""
    servers: list[Forked] = field(default_factory=list)
    is_deleted: bool = False
    others: tuple[Path, ...] = ()
    """Folders of another file and adapter, which no fault damages."""
    is_damaged: bool = False
    """Whether a checkpoint was damaged; then the newest one that was reported may be refused."""


@dataclass(frozen=True)
class Reference:
    """An undisturbed run."""

    losses: dict[int, float]
    weights: dict[str, torch.Tensor]

    @classmethod
    def of(cls, run: Run) -> Reference:
        return cls(losses(run), load_file(run.adapter / WEIGHTS))


def losses(run: Run) -> dict[int, float]:
    """Return the last loss that was logged for each step."""
    return {event.step: event.values["loss"] for event in run.events.read() if event.kind == "log"}


def undisturbed(folder: Path, settings: dict[str, Any]) -> Reference:
    with place_of(folder, settings, small=False) as place:
        place.servers.append(start_server(place.home))
        _wait(lambda: place.store.get(place.run.id).state == "done", DONE_S, "the undisturbed run is not done")
        return Reference.of(place.store.get(place.run.id))


def run_schedule(seed: int, folder: Path, settings: dict[str, Any], expected: Reference) -> list[str]:
    """Run a schedule and return what happened.

    Raises:
        Violation: something that must hold does not; its notes are what happened.
    """
    chance, told = random.Random(seed), list[str]()  # nosec B311 - a seed repeats a schedule
    with place_of(folder, settings, small=True) as place:
        place.servers.append(start_server(place.home))
        try:
            _apply_faults(place, chance, told)
            if not all(server.poll() is None for server in place.servers[-1:]):
                place.servers.append(start_server(place.home))
            _check(place, expected, told, chance)
        except Exception as error:
            for each in told:
                error.add_note(each)
            raise
    return told


def _apply_faults(place: Place, chance: random.Random, told: list[str]) -> None:
    times = sorted(chance.uniform(0.0, RUN_S) for _ in range(chance.choice((1, 2, 2, 3, 4))))
    begun = time.monotonic()
    for at in times:
        time.sleep(max(0.0, at - (time.monotonic() - begun)))
        name = chance.choice([*FAULTS])
        told.append(f"{at:.2f} s, {name}: {FAULTS[name](place, chance)}")


def _check(place: Place, expected: Reference, told: list[str], chance: random.Random) -> None:
    _wait(lambda: _answers(place), TRUE_STATE_S, "the server does not answer")
    if place.is_deleted:
        _wait(lambda: not trainers(place.home), TRUE_STATE_S, "a trainer of a deleted run is left")
        if place.run.folder.exists() or place.run.id in [run.id for run in place.store.list()]:
            raise Violation("a deleted run is there again")
        return
    _wait(lambda: _is_true(place), TRUE_STATE_S, "the run's state is not true")
    _check_saved(place)
    _check_others(place)
    while (run := _settled(place)).state != "done":
        told.append(f"{run.state}: {run.message}")
        if run.state == "failed" and not re.search("disk is full|can't be written|exit code", run.message):
            raise Violation(f"the run failed: {run.message}")
        _resume(place, told)
    if trainers(place.home):
        raise Violation("a trainer is left after the run is done")
    _compare(run, expected)
    _check_export(place, run, told, chance)


def _answers(place: Place) -> bool:
    """Return whether the page answers, and its list of runs holds the run, or not if it was deleted."""
    page = f"http://127.0.0.1:{place.servers[-1].port}"
    try:
        config, listing = (httpx.get(f"{page}/{path}", timeout=10) for path in ("config", "watch/runs"))
    except httpx.HTTPError:
        return False
    is_listed = place.run.id in [row["id"] for row in listing.json()["runs"]]
    return config.status_code == listing.status_code == 200 and is_listed != place.is_deleted


def _check_others(place: Place) -> None:
    """Damage of one upload or adapter leaves the others, and nothing of an upload that was cut is left."""
    if other := [each for each in place.others if not any(map(each.samefile, _listed(place)))]:
        raise Violation(f"{other} are not listed any more")
    _wait(lambda: not _parts(place), TRUE_STATE_S, "parts of an upload are left")


def _listed(place: Place) -> list[Path]:
    return [file.parent for file in uploads.stored("ada")] + [each.folder for each in adapters.list_uploads()]


def _parts(place: Place) -> list[Path]:
    return [file for file in (place.home.parent / UPLOADS).rglob("*") if file.is_file() and file.stat().st_size]


def _check_export(place: Place, run: Run, told: list[str], chance: random.Random) -> None:
    """Kill an export at a random moment, and then the server: the export is whole or missing, and no part is left."""
    export = Forked(lambda: kept.make(RunStore(place.home), run.id, "adapter"), place.home.parent / "export.txt")
    time.sleep(chance.uniform(0.0, 0.1))
    export.kill()
    export.wait()
    for server in place.servers:
        server.kill()
        server.wait()
    place.servers.append(start_server(place.home))
    folder = run.folder / "exports" / "adapter"
    told.append("an export was killed before its end" if not folder.exists() else "an export was killed after its end")
    _wait(lambda: not [*folder.parent.glob(".*")], TRUE_STATE_S, "a part of an export is left")
    if folder.exists() and (folder / WEIGHTS).read_bytes() != (run.adapter / WEIGHTS).read_bytes():
        raise Violation("an export is not whole")
    _wait(lambda: _answers(place), TRUE_STATE_S, "the server does not answer after an export")


def _is_true(place: Place) -> bool:
    """Return whether the state agrees with the processes."""
    run = _get(place)
    if run is None:
        return False
    if run.state == "running":
        return is_alive(run)
    return run.state == "queued" or not trainers(place.home)


def _get(place: Place) -> Run | None:
    with suppress(StudioError):  # the database is just being rebuilt
        return place.store.get(place.run.id)
    return None


def _settled(place: Place) -> Run:
    """Wait until the run has ended, and return it."""
    _wait(lambda: _has_ended(place), DONE_S, "the run does not end")
    return place.store.get(place.run.id)


def _has_ended(place: Place) -> bool:
    run = _get(place)
    return run is not None and run.state not in ("queued", "running") and not trainers(place.home)


def _check_saved(place: Place) -> None:
    """Every checkpoint that was reported, and not damaged since, is there or was replaced by a newer one."""
    reported = [event.step for event in place.run.events.read() if event.kind == "checkpoint"]
    newest = last_checkpoint(place.run)
    if reported and not place.is_damaged and (newest is None or _step(newest) < reported[-1]):
        raise Violation(f"checkpoint-{reported[-1]} was reported, and the newest whole one is {newest}")


def _resume(place: Place, told: list[str]) -> None:
    newest = last_checkpoint(place.run)
    place.store.resume(place.run.id)
    if newest is None:
        return

    def says_where() -> bool:
        run = _get(place)
        return run is not None and (run.state not in ("queued", "running") or f"from {newest.name}" in run.message)

    _wait(says_where, DONE_S, f"the run does not say that it resumes from {newest.name}")
    told.append(f"resumed from {newest.name}")


def _compare(run: Run, expected: Reference) -> None:
    found = losses(run)
    if odd := [step for step, loss in found.items() if expected.losses.get(step) != loss]:
        raise Violation(f"other losses than those of an undisturbed run at steps {odd}")
    weights = load_file(run.adapter / WEIGHTS)
    if any(not torch.equal(weights[name], tensor) for name, tensor in expected.weights.items()):
        raise Violation("another adapter than that of an undisturbed run")


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _wait(condition: Callable[[], bool], seconds: float, problem: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise Violation(f"{problem} after {seconds:g} seconds")
        time.sleep(0.05)


def _stored(folder: Path, name: str) -> tuple[Path, Path]:
    """Store a file and an adapter of a visitor, and return their folders."""
    rows = folder / f"{name}.csv"
    rows.write_text(f"{name}\n")
    upload = uploads.find(uploads.keep(rows, "ada")).parent
    adapter = folder / "home" / "adapters" / uuid.uuid4().hex
    adapter.mkdir(parents=True)
    for file in (WEIGHTS, "adapter_config.json"):
        (adapter / file).write_text("{}")
    about = {"name": name, "model": "starter", "created": 1.0, "sha256": "", "owner": "ada"}
    (adapter / "about.json").write_text(json.dumps(about))
    return upload, adapter


@contextmanager
def place_of(folder: Path, settings: dict[str, Any], small: bool) -> Any:
    """Yield a place with a queued run, on a disk of its own if possible; end all of its processes."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    is_small = small and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    home = folder / "home"
    environment(home)
    store = RunStore(home)
    damaged, others = _stored(folder, "damaged"), _stored(folder, "other")
    place = Place(home, store, store.create(Recipe.from_settings(settings)), is_small, *damaged, others=others)
    try:
        yield place
    finally:
        for each in (*place.servers, *trainers(home)):
            with suppress(OSError, ProcessLookupError):
                each.kill()
        for server in place.servers:
            server.wait()
        _wait(lambda: not trainers(home), TRUE_STATE_S, "a trainer can't be ended")
        if is_small:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        shutil.rmtree(folder, ignore_errors=True)
