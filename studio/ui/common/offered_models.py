"""The models that the page offers: the catalog, and the model that this server was started with.

[entry.id for entry in offered(engine)]

The command line also accepts folders; a page must not access arbitrary folders of the server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from studio.backend.models import catalog
from studio.backend.models.catalog import ModelEntry

if TYPE_CHECKING:
    from studio.backend.chat.engine import Engine


def offered(engine: Engine) -> dict[str, ModelEntry]:
    """Return the models by the ids that the engine uses."""
    known = {entry.id: entry for entry in catalog.models()}
    current = engine.status().model_id
    return known if current is None or current in known else known | {current: catalog.entry(current)}
