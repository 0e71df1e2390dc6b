"""The faults of a schedule. Each gets the place and the random numbers, and returns what it did."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
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


def stop_server(place: Place, chance: random.Random) -> str:
    for number in (signal.SIGSTOP, signal.SIGCONT):
        place.servers[-1].kill(number)
        time.sleep(chance.uniform(0.0, 0.5))
    return "the server was stopped for a while"


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


def read_only(place: Place, chance: random.Random) -> str:
    if not place.is_small_disk:
        return "no disk to make read-only"
    home = str(place.home)
    # A mount over the home, because files that are open for writing keep the disk itself from becoming read-only.
    for command in (["--bind", home, home], ["-o", "remount,ro,bind", home]):
        subprocess.run(["mount", *command], check=True, capture_output=True)
    time.sleep(chance.uniform(0.1, FULL_S))
    subprocess.run(["umount", "-l", home], check=True, capture_output=True)
    return "the home was read-only for a while"


def damage_adapter(place: Place, chance: random.Random) -> str:
    return _damage_one_of(place.adapter, chance)


def damage_upload(place: Place, chance: random.Random) -> str:
    return _damage_one_of(place.upload, chance)


def _damage_one_of(folder: Path, chance: random.Random) -> str:
    files = sorted(folder.iterdir()) if folder.exists() else []
    return _damage(chance.choice(files), chance) if files else "nothing to damage"


def cut_upload(place: Place, chance: random.Random) -> str:
    """Begin an upload and leave in the middle of it."""
    part = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="rows.csv"\r\n\r\n'
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1:{place.servers[-1].port}\r\nContent-Length: 100000\r\n"
    head += "Content-Type: multipart/form-data; boundary=edge\r\n\r\n"
    try:
        with socket.create_connection(("127.0.0.1", place.servers[-1].port), timeout=5) as sending:
            sending.sendall(head.encode() + part + b"x" * chance.randrange(90_000))
            time.sleep(chance.uniform(0.0, 0.1))
    except OSError as error:
        return f"no server to upload to: {error.strerror}"
    return "an upload was cut"


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
        damage_events, damage_record, damage_database, full_disk, stop_server, read_only, damage_adapter,
        damage_upload, cut_upload,
    )
}  # fmt: skip
