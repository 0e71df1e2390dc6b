"""The models that the page offers: the catalog, and the model that this server was started with.

[entry.id for entry in offered(engine)]

The command line also accepts folders; a page must not access arbitrary folders of the server. A demo offers only the
starter and the loaded model: any other would cost a download, and memory on top of what is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from studio.backend.hosting import demo
from studio.backend.models import catalog, hub
from studio.backend.models.catalog import ModelEntry
from studio.errors import StudioError

if TYPE_CHECKING:
    from studio.backend.chat.engine import Engine


def offered(engine: Engine) -> dict[str, ModelEntry]:
    """Return the models by the ids that the engine uses."""
    known = {entry.id: entry for entry in catalog.models()}
    if demo.limits():
        known = {catalog.STARTER.id: catalog.STARTER}
    current = engine.status().model_id
    return known if current is None or current in known else known | {current: catalog.entry(current)}


def checked_id(engine: Engine, text: object) -> str:
    """Return the id of an offered model, or of any model of the Hub; `text` is untrusted.

    Raises:
        StudioError: it is neither, or it is the path of a folder.
    """
    if not isinstance(text, str):
        raise StudioError("This model is not in the list. Reload the page and select another one.")
    if text in offered(engine):
        return text
    model_id = hub.parse(text).id
    if Path(model_id).exists():
        raise StudioError(
            f"{model_id} is also a folder on the server. Start the studio with `--model {model_id}` to load it."
        )
    return model_id
