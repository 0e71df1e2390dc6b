"""The base model of an exported adapter, and the labels of a classifier."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

from jetmoe.adapters.files import WEIGHTS, is_classifier
from jetmoe.lora import AdapterError
from studio.backend.adapters.find import Found, require_model
from studio.backend.classification.head import labels_of
from studio.backend.data.labelled import Labels
from studio.backend.models import catalog
from studio.errors import StudioError

PROOF = "merge_proof.json"
# Next to a classifier's adapter; it contains the label names.
MODEL_CONFIG = "config.json"


@dataclass(frozen=True)
class Base:
    model: str
    """A model id of the catalog, or a path."""
    entry: catalog.ModelEntry

    @classmethod
    def of(cls, found: Found, model: str | None) -> Base:
        """Return the base model of an adapter.

        Raises:
            StudioError: the model is unknown, or is not the one that was trained.
        """
        model = model or found.model
        if not model:
            raise StudioError(
                f"No run of this studio made the adapter in {found.folder}; name its base model (--model)."
            )
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
    """Return the labels of a classifier, or None for a chat adapter.

    Raises:
        StudioError: the label names are missing.
    """
    if not is_classifier(folder):
        return None
    if not (folder / MODEL_CONFIG).is_file():
        raise StudioError(f"{folder.name} has no {MODEL_CONFIG}, which names its labels. Copy it from the classifier.")
    return labels_of(AutoConfig.from_pretrained(folder))


def check_readable(folder: Path) -> None:
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as weights:
            weights.keys()
    except FileNotFoundError as error:
        raise AdapterError(f"{folder.name} holds no {WEIGHTS}; other formats can run code when opened.") from error
    except SafetensorError as error:
        raise AdapterError(f"{WEIGHTS} is damaged ({error}); save or download the adapter again.") from error
