"""Export a tuned model: the adapter, or the merged model with a proof, and a model card.

    export("3f2a", "pirate")                            # loads in stock PEFT on stock transformers' JetMoE
    export("3f2a", "pirate-merged", merge=True)         # loads in stock transformers

The folder is written atomically. A merged model is read back first, and its logits are compared with those of the base
model with the adapter and without it; the figures are in `merge_proof.json` and in the model card.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from jetmoe.adapters.files import CONFIG, WEIGHTS, is_classifier, read_config
from jetmoe.loading.checkpoint import CheckpointError
from jetmoe.lora import AdapterError
from studio.backend.adapters.find import Found, find
from studio.backend.classification import tfidf
from studio.backend.classification.tfidf import Tfidf
from studio.backend.data.labelled import Labels
from studio.backend.export.base import MODEL_CONFIG, Base, check_readable, labels_of_adapter, writing
from studio.backend.export.merge import Merge
from studio.backend.export.model_card import LARGEST_CARD, model_card
from studio.backend.models import placement
from studio.backend.system.files import publish, require_space
from studio.backend.system.progress import Progress
from studio.errors import StudioError

# The studio reports progress itself.
transformers_logging.disable_progress_bar()


@dataclass(frozen=True)
class Export:
    folder: Path
    base_model: str
    """A hub id, or the id of a local model; never a path."""
    proof: dict[str, Any] | None
    """The content of `merge_proof.json`; None for an adapter, which is copied unchanged."""

    def row(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return vars(self) | {"folder": str(self.folder), "merged": self.proof is not None}


def export(
    run_or_folder: str | Path,
    to: str | Path,
    merge: bool = False,
    four_bit: bool = False,
    model: str | None = None,
    progress: Progress = lambda fraction, text: None,
) -> Export:
    """Write the adapter, or the merged model, to a new folder.

    Args:
        run_or_folder: a run id or the start of one, or the folder of a PEFT adapter.
        merge: merge the adapter into the weights and store them in 16 bits.
        four_bit: with `merge`, store 4 bits: the base's 4-bit weights are dequantized, changed and quantized again.
        model: the base model; optional if a run made the adapter or it was uploaded.

    Raises:
        StudioError: there is no such adapter, it belongs to another model, the folder isn't empty, the disk is full, or
            the merge proof fails; nothing is left behind then.
    """
    found, target = find(run_or_folder), Path(to)
    base = Base.of(found, model)
    if four_bit and not merge:
        raise StudioError("Only a merged model can be stored in 4 bits: merge the adapter too, or leave out 4 bits.")
    labels = labels_of_adapter(found.folder)
    merging = Merge(found.folder, base, "nf4" if four_bit else "bf16", progress, labels) if merge else None
    with whole(target, _bytes_needed(found, merging)) as folder:
        try:
            proof = merging.write(folder) if merging else None
            if merging is None:
                _write_adapter(found, base, folder)
        except (AdapterError, CheckpointError) as error:
            raise StudioError(str(error)) from error
        _copy_tfidf(found, labels, folder)
        with writing(target):
            (folder / "README.md").write_text(model_card(found, base, proof), encoding="utf-8")
    return Export(target, base.entry.id, proof)


@contextmanager
def whole(target: Path, need_bytes: int) -> Iterator[Path]:
    """Yield a temporary folder next to the target and rename it at the end; on failure it is deleted.

    Raises:
        StudioError: the target is not empty, or its disk is too full.
    """
    with writing(target):
        target = target.resolve()
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise StudioError(f"{target} is not empty. Name a new folder.")
        target.parent.mkdir(parents=True, exist_ok=True)
        require_space(target.parent, need_bytes)
        work = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
        work.mkdir()
    try:
        yield work
        with writing(target):
            if target.exists():
                target.rmdir()
            publish(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _bytes_needed(found: Found, merging: Merge | None) -> int:
    """Estimate the disk space; the files of a model take a little less than its memory."""
    if merging is not None:
        return int(merging.base.entry.needs_gib[merging.precision] * placement.GIB)
    return sum(file.stat().st_size for file in found.folder.glob(WEIGHTS)) + LARGEST_CARD


def _write_adapter(found: Found, base: Base, folder: Path) -> None:
    """Copy the adapter and name its base model.

    Raises:
        AdapterError, StudioError: the adapter can't be read or written.
    """
    read_config(found.folder, with_head=True)
    check_readable(found.folder)
    config = json.loads((found.folder / CONFIG).read_text())
    config["base_model_name_or_path"] = base.entry.id
    with writing(folder):
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))
        shutil.copyfile(found.folder / WEIGHTS, folder / WEIGHTS)
        if is_classifier(found.folder):
            shutil.copyfile(found.folder / MODEL_CONFIG, folder / MODEL_CONFIG)


def _copy_tfidf(found: Found, labels: Labels | None, folder: Path) -> None:
    """Copy the TF-IDF part of a classifier, if it has one. Raise StudioError if it can't be read or written."""
    if labels is None or not labels.with_tfidf:
        return
    Tfidf.load(found.folder, len(labels.names))
    with writing(folder):
        for name in tfidf.FILES:
            shutil.copyfile(found.folder / name, folder / name)
