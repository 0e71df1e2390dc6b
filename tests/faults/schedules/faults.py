"""The faults of a schedule. Each gets the place and the random numbers, and returns what it did."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from studio.backend.training.checkpoint import WHOLE
from studio.errors import StudioError
from tests.faults.schedules.processes import start_server, trainers

if TYPE_CHECKING:
    from tests.faults.schedules.schedule import Place

Fault = Callable[["Place", random.Random], str]
FULL_S = 0.4


def kill_trainer(place: Place, chance: random.Random) -> str:
    number = chance.choice((signal.SIGKILL, signal.SIGTERM))
    for each in trainers(place.home):
        with suppress(OSError):
            os.kill(each.pid, number)
    return f"{number.name} to the trainer"


def kill_server(place: Place, chance: random.Random) -> str:
    number = chance.choice((signal.SIGKILL, signal.SIGTERM))
    place.servers[-1].kill(number)
    place.servers[-1].wait()
    return f"{number.name} to the server"


def kill_both(place: Place, chance: random.Random) -> str:
    kill_server(place, chance)
    kill_trainer(place, chance)
    return "both killed"


def stop_trainer(place: Place, chance: random.Random) -> str:
    stopped = trainers(place.home)
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for each in stopped:
            with suppress(OSError):
                os.kill(each.pid, number)
        time.sleep(chance.uniform(0.0, 0.5))
    return "the trainer was stopped for a while"


def second_server(place: Place, chance: random.Random) -> str:
    place.servers.append(start_server(place.home))
    return "a second server"


def cancel(place: Place, chance: random.Random) -> str:
    for _ in range(chance.choice((1, 2))):
        with suppress(StudioError):  # it has ended
            place.store.request_cancel(place.run.id)
    return "cancelled"


def resume(place: Place, chance: random.Random) -> str:
    with suppress(StudioError):  # it has not ended
        place.store.resume(place.run.id)
    return "resumed"


def delete(place: Place, chance: random.Random) -> str:
    try:
        place.store.delete(place.run.id)
    except StudioError as error:
        return f"not deleted: {error}"
    place.is_deleted = True
    return "deleted"


def damage_checkpoint(place: Place, chance: random.Random) -> str:
    files = [file for file in place.run.checkpoints.glob("checkpoint-*/*") if (file.parent / WHOLE).exists()]
    if not files:
        return "no checkpoint to damage yet"
    newest = max(files, key=lambda file: int(file.parent.name.rpartition("-")[2])).parent
    file = chance.choice(sorted(each for each in files if each.parent == newest))
    place.is_damaged = True
    return f"{file.parent.name}/{_damage(file, chance)}"


def damage_events(place: Place, chance: random.Random) -> str:
    with suppress(OSError), place.run.events.path.open("ab") as file:
        file.write(chance.choice((b"\xff\n", b"[]\n", b'{"seq": "x"}\n', b'{"seq": 3, "step"')))
    return "an odd line in events.jsonl"


def damage_record(place: Place, chance: random.Random) -> str:
    file = place.run.folder / "run.json"
    return _damage(file, chance) if file.exists() else "no run.json"


def damage_database(place: Place, chance: random.Random) -> str:
    how = chance.choice(("removed", "emptied", "overwritten"))
    with suppress(OSError):
        if how == "removed":
            for suffix in ("-wal", "-shm", ""):
                place.store.path.with_name(place.store.path.name + suffix).unlink(missing_ok=True)
        else:
            place.store.path.write_bytes(b"" if how == "emptied" else b"no database at all " * 400)
    return f"the database was {how}"


def full_disk(place: Place, chance: random.Random) -> str:
    if not place.is_small_disk:
        return "no small disk to fill"
    file = place.home.parent / "fill"
    with suppress(OSError), file.open("wb", 0) as filling:
        while True:
            filling.write(b"x" * 4096)
    time.sleep(chance.uniform(0.1, FULL_S))
    file.unlink()
    return "the disk was full for a while"


def _damage(file: Path, chance: random.Random) -> str:
    """Truncate, change, empty or remove a file."""
    how = chance.choice(("truncated", "flipped", "emptied", "removed"))
    with suppress(OSError):
        data = bytearray(file.read_bytes())
        at = chance.randrange(max(1, len(data)))
        if how == "removed":
            file.unlink()
        elif how == "flipped" and data:
            data[at] ^= 1
            file.write_bytes(data)
        else:
            file.write_bytes(data[:at] if how == "truncated" else b"")
    return f"{file.name} was {how}"


FAULTS: dict[str, Fault] = {
    each.__name__: each
    for each in (
        kill_trainer, kill_server, kill_both, stop_trainer, second_server, cancel, resume, delete, damage_checkpoint,
        damage_events, damage_record, damage_database, full_disk,
    )
}  # fmt: skip
