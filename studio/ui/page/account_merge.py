"""Transfer an anonymous visitor's data to their account after sign-in.

merge = account_merger(store)
merge("anon:" + 32 * "0", "hf:ada")
"""

from __future__ import annotations

from collections.abc import Callable

from studio.backend.adapters import uploads as adapters
from studio.backend.data import uploads
from studio.backend.runs.store import RunStore
from studio.ui.common.trace_store import traces


def account_merger(store: RunStore) -> Callable[[str, str], None]:
    """Return a function that transfers everything from one owner to another.

    The function is idempotent. It raises StudioError if a file or database can't be written; the next call transfers
    the rest.
    """

    def merge(before: str, after: str) -> None:
        for each in (store, uploads, adapters, traces):
            each.transfer_owner(before, after)

    return merge
