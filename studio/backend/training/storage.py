"""What an owner has stored, and its deletion: runs, uploaded files with results, and uploaded adapters.

items = stored(jobs.store, owner)                   # largest first
delete(jobs, items[0].key, owner)                   # returns a sentence
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from studio.backend.adapters import uploads as adapters
from studio.backend.data import uploads
from studio.backend.runs.store import RunStore
from studio.backend.system.plan import size
from studio.backend.training.queue import Jobs
from studio.errors import StudioError


class Item(NamedTuple):
    kind: Literal["run", "file", "adapter"]
    id: str
    name: str
    bytes: int

    @property
    def key(self) -> str:
        """What `delete` takes."""
        return f"{self.kind}:{self.id}"


def stored(store: RunStore, owner: str = "") -> list[Item]:
    """Return everything that an owner has stored, largest first; the empty owner sees all."""
    runs = [Item("run", run.id, run.name, size(run.folder)) for run in store.list(owner)]
    files = [Item("file", file.parent.name, file.name, file.stat().st_size) for file in uploads.stored(owner)]
    own = [each for each in adapters.list_uploads() if owner in ("", each.owner)]
    items = [*runs, *files, *(Item("adapter", each.id, each.name, size(each.folder)) for each in own)]
    return sorted(items, key=lambda each: -each.bytes)


def delete(jobs: Jobs, key: object, owner: str = "") -> str:
    """Delete a run, a file or an adapter and return a message.

    Raises:
        StudioError: the owner has nothing with this key, or it is in use.
    """
    kind, _, item_id = str(key)[:100].partition(":")
    match kind:
        case "run":
            run = jobs.store.get(item_id, owner)
            jobs.delete(run.id)
            return f"The run “{run.name}” was deleted."
        case "file":
            return f"The file “{uploads.delete(item_id, jobs.store, owner)}” was deleted."
        case "adapter":
            return f"The adapter “{adapters.delete_upload(item_id, owner).name}” was deleted."
    raise StudioError("Select something from the list first.")
