"""What a browser made before its person signed in becomes the account's.

move = mover(store)
move("anon:" + 32 * "0", "hf:ada")
"""

from __future__ import annotations

from collections.abc import Callable

from studio.backend.adapters import uploads as adapters
from studio.backend.data import uploads
from studio.backend.runs.store import RunStore
from studio.ui.common.trace_store import traces


def mover(store: RunStore) -> Callable[[str, str], None]:
    """Gives all that is one owner's to another; once more changes nothing. It raises StudioError where a disk or a
    database can't be written; the rest is given the next time."""

    def move(before: str, after: str) -> None:
        for each in (store, uploads, adapters, traces):
            each.transfer_owner(before, after)

    return move
