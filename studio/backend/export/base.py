"""The base model of an adapter that is exported, and the labels of a classifier."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from jetmoe import JetMoeConfig
from jetmoe.adapters.files import WEIGHTS, is_classifier
from jetmoe.lora import AdapterError
from studio.backend.adapters.find import Found, require_model
from studio.backend.classification.head import labels_of
from studio.backend.data.labelled import Labels
from studio.backend.models import catalog
from studio.errors import StudioError

PROOF = "merge_proof.json"
# Beside the adapter of a classifier: it names the labels.
MODEL_CONFIG = "config.json"


@dataclass(frozen=True)
class Base:
    model: str
    """As the catalog understands it; may be a path."""
    entry: catalog.ModelEntry

    @classmethod
    def of(cls, found: Found, model: str | None) -> Base:
        """Raises StudioError: it isn't known or not the one that was trained."""
        model = model or found.model
        if not model:
            raise StudioError(f"No run of this studio made the adapter in {found.folder}; say of what model it is.")
        require_model(found, model)
        return cls(model, catalog.entry(model))


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StudioError(
            f"Writing to {folder.absolute().parent} failed ({str(error)[:300]}). Free some space there, or name "
            "another folder."
        ) from error


def labels_of_adapter(folder: Path) -> Labels | None:
    """What a classifier tells apart. Raises StudioError: it doesn't say."""
    if not is_classifier(folder):
        return None
    if not (folder / MODEL_CONFIG).is_file():
        raise StudioError(f"{folder.name} doesn't say what its labels are: there is no {MODEL_CONFIG} in it.")
    return labels_of(JetMoeConfig.from_pretrained(folder))


def check_finite(folder: Path) -> None:
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as weights:
            weights.keys()
    except FileNotFoundError as error:
        raise AdapterError(f"{folder.name} holds no {WEIGHTS}; other formats can run code when opened.") from error
    except SafetensorError as error:
        raise AdapterError(f"{WEIGHTS} is damaged ({error}); save or download the adapter again.") from error
