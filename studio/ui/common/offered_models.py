"""The models that a page may name: those of the catalog, and the one that this server was started with.

[entry.id for entry in offered(engine)]

The command line also takes folders; a page must not choose any folder of the server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from studio.backend.models import catalog
from studio.backend.models.catalog import ModelEntry

if TYPE_CHECKING:
    from studio.backend.chat.engine import Engine


def offered(engine: Engine) -> dict[str, ModelEntry]:
    """By what the engine calls them."""
    known = {entry.id: entry for entry in catalog.models()}
    current = engine.status().model_id
    return known if current is None or current in known else known | {current: catalog.entry(current)}
