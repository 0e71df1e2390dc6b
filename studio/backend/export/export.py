"""Writes a tuned model for others: the adapter, or base and adapter merged with a proof, and a model card.

    export("3f2a", "pirate")                            # loads in stock PEFT on stock transformers' JetMoE
    export("3f2a", "pirate-merged", merge=True)         # loads in stock transformers

The folder appears whole or not at all. A merged one is read back first, and its logits are held against those of base
and adapter, and of the base alone; the figures are in `merge_proof.json` and in the model card.
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
from studio.backend.export.base import MODEL_CONFIG, Base, check_finite, labels_of_adapter, writing
from studio.backend.export.merge import Merge
from studio.backend.export.model_card import LARGEST_CARD, model_card
from studio.backend.models import placement
from studio.backend.system.files import require_space
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
    """What `merge_proof.json` holds; None of an adapter, which is copied as it is."""

    def row(self) -> dict[str, Any]:
        """What `--json` prints."""
        return vars(self) | {"folder": str(self.folder), "merged": self.proof is not None}


def export(
    run_or_folder: str | Path,
    to: str | Path,
    merge: bool = False,
    four_bit: bool = False,
    model: str | None = None,
    progress: Progress = lambda fraction, text: None,
) -> Export:
    """Writes the adapter, or the merged model, to a new folder.

    Args:
        run_or_folder: a run's id or its first characters, or the folder of a PEFT adapter.
        merge: add the adapter to the weights and store those, in 16 bits.
        four_bit: with `merge`, in 4 bits: of the base's 4-bit weights, dequantized, changed and quantized again.
        model: what the adapter was trained on; known where a run made it or it was uploaded.

    Raises:
        StudioError: no such adapter, another model's, a folder that isn't empty, a full disk, or a merge whose proof
            fails; nothing is left behind then.
    """
    found, target = find(run_or_folder), Path(to)
    base = Base.of(found, model)
    if four_bit and not merge:
        raise StudioError("Only a merged model is written in 4 bits, not an adapter: merge too, or leave out 4 bits.")
    labels = labels_of_adapter(found.folder)
    merging = Merge(found.folder, base, "nf4" if four_bit else "bf16", progress, labels) if merge else None
    with _whole(target, _bytes_needed(found, merging)) as folder:
        try:
            proof = merging.write(folder) if merging else None
            if merging is None:
                _write_adapter(found, base, folder)
        except (AdapterError, CheckpointError) as error:
            raise StudioError(str(error)) from error
        with writing(target):
            (folder / "README.md").write_text(model_card(found, base, proof), encoding="utf-8")
    return Export(target, base.entry.id, proof)


@contextmanager
def _whole(target: Path, need_bytes: int) -> Iterator[Path]:
    """A folder beside the target that takes its place at the end; whatever fails, nothing of it stays."""
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
            work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _bytes_needed(found: Found, merging: Merge | None) -> int:
    """What a model needs in memory is a little more than its files take."""
    if merging is not None:
        return int(merging.base.entry.needs_gib[merging.precision] * placement.GIB)
    return sum(file.stat().st_size for file in found.folder.glob(WEIGHTS)) + LARGEST_CARD


def _write_adapter(found: Found, base: Base, folder: Path) -> None:
    """Raises AdapterError, StudioError: it can't be read or written."""
    read_config(found.folder, with_head=True)
    check_finite(found.folder)
    config = json.loads((found.folder / CONFIG).read_text())
    config["base_model_name_or_path"] = base.entry.id
    with writing(folder):
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))
        shutil.copyfile(found.folder / WEIGHTS, folder / WEIGHTS)
        if is_classifier(found.folder):
            shutil.copyfile(found.folder / MODEL_CONFIG, folder / MODEL_CONFIG)
