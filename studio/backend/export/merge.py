"""Merge an adapter into its base model, and prove that the merged model gives the same logits."""

from __future__ import annotations

import gc
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from jetmoe.adapters.files import read_head
from jetmoe.adapters.merge import merge
from jetmoe.adapters.switching import Adapters
from jetmoe.classification import MoeForSequenceClassification
from jetmoe.config import MoeConfig
from jetmoe.loading.checkpoint import is_4bit, stored_tensors
from jetmoe.loading.load import load
from studio.backend.data.labelled import Labels
from studio.backend.data.packing import pad_id
from studio.backend.data.prompt import encode_plain
from studio.backend.export.base import PROOF, Base, writing
from studio.backend.models import catalog, placement
from studio.backend.system.progress import Progress, reading
from studio.backend.training.drift_probe import MAX_TOKENS, TEXT
from studio.backend.training.prepare import labelled_config
from studio.errors import StudioError

# The allowed distance of merged logits from those of base and adapter, relative to the change that the adapter makes.
# It includes rounding to the stored precision. Below 0.5, the merged model is closer to base and adapter than to the
# base alone.
TOLERANCE = {"bf16": 0.25, "nf4": 0.5}


@dataclass(frozen=True)
class Merge:
    """The merge of a base model and an adapter."""

    adapter: Path
    base: Base
    precision: Literal["bf16", "nf4"]
    progress: Progress
    labels: Labels | None = None
    """Labels of a classifier; None for chat."""

    def write(self, folder: Path) -> dict[str, Any]:
        """Merge, write the model and return the proof.

        Raises:
            AdapterError, CheckpointError, StudioError: the model can't be merged or written, or the proof fails.
        """
        path = catalog.prepare(self.base.model, self.progress)
        if self.precision != "nf4" and is_4bit(stored_tensors(path)):
            raise StudioError(f"{self.base.entry.id} is in 4 bits: merge in 4 bits (--four-bit), or name a 16-bit one.")
        tokenizer = AutoTokenizer.from_pretrained(path)
        ids = encode_plain(tokenizer, TEXT)[:MAX_TOKENS]
        config = None if self.labels is None else labelled_config(path, self.labels, pad_id(tokenizer))
        alone, tuned, lost = self._merged(self._load(path, config), folder, ids)
        gc.collect()  # frees the memory of the model before the written one is loaded
        torch.cuda.empty_cache()
        merged, is_classifier = _logits(self._load(folder), ids), self.labels is not None
        proof = prove(alone, tuned, merged, self.precision, is_classifier) | {"rounding_loss": lost}
        if self.labels is not None:
            proof["same_label"] = proof.pop("same_next_token")
        with writing(folder):
            tokenizer.save_pretrained(folder)
            (folder / PROOF).write_text(json.dumps(proof, indent=2))
        return proof

    def _merged(self, model: Any, folder: Path, ids: list[int]) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Write the merged weights; return the logits without and with the adapter, and the rounding loss.

        For a classifier, the logits without the adapter use the trained head too, because the base model has none.
        """
        adapters = Adapters(model)
        if self.labels is not None:
            model.score.weight.data.copy_(read_head(self.adapter))
        alone = _logits(model, ids)
        adapters.load(self.adapter, "tuned")
        adapters.use("tuned")
        tuned = _logits(model, ids)
        self.progress(1.0, "Merging and writing …")
        lost = merge(model)
        with writing(folder):
            model.save_pretrained(folder)
        return alone, tuned, lost

    def _load(self, path: Path, config: MoeConfig | None = None) -> Any:
        model_class: Any = AutoModelForCausalLM if self.labels is None else AutoModelForSequenceClassification
        with placement.shortage("while merging: close other programs, or merge in 4 bits"):
            return load(
                model_class,
                path,
                quantization="nf4" if self.precision == "nf4" else None,
                dtype=torch.bfloat16,  # even if it is emulated, because bf16 is written
                device=placement.placement(self.base.entry, self.precision).device,
                config=config,
                progress=reading(self.progress),
            )


@torch.no_grad()
def _logits(model: Any, ids: list[int]) -> Tensor:
    """Return the logits of every token; for a classifier, those of the text up to each token."""
    hidden = model.model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).last_hidden_state[0]
    head = model.score if isinstance(model, MoeForSequenceClassification) else model.lm_head
    return head(hidden).float().cpu()  # [T, vocabulary or labels]


def prove(alone: Tensor, tuned: Tensor, merged: Tensor, precision: str, is_classifier: bool = False) -> dict[str, Any]:
    """Prove by the logits on one text that a merged model answers like base and adapter, not like the base alone.

    A classifier whose head alone was fitted has no change; the distances are then relative to the logits.

    Returns:
        change: the distance that the adapter moves the logits, relative to the logits of the base model;
        error: the distance of the merged logits from those of base and adapter, relative to that change;
        from_base: the distance of the merged logits from those of the base, relative to that change.

    Raises:
        StudioError: the error is above the tolerance, or the adapter changes nothing.
    """
    change = (tuned - alone).norm()
    if not change > 0 and not is_classifier:
        raise StudioError("The adapter changes nothing on the probe text: there is nothing to merge. Train it first.")
    scale = change if change > 0 else tuned.norm()
    error, from_base = float((merged - tuned).norm() / scale), float((merged - alone).norm() / scale)
    if not error <= TOLERANCE[precision]:
        raise StudioError(_failure(error, precision))
    return {
        "precision": precision,
        "tokens": len(merged),
        "change": float(change / alone.norm()),
        "error": error,
        "tolerance": TOLERANCE[precision],
        "from_base": from_base,
        "same_next_token": float((merged.argmax(-1) == tuned.argmax(-1)).float().mean()),
    }


def _failure(error: float, precision: str) -> str:
    cause = "4 bits are too coarse for so small a change" if precision == "nf4" else "its change is lost in rounding"
    remedy = "merge in 16 bits, or export the adapter" if precision == "nf4" else "export the adapter without merging"
    return (
        f"The merged model does not answer like base and adapter: its error is {error:.2f} of the change that the "
        f"adapter makes, and {TOLERANCE[precision]} is allowed; {cause}. Nothing was written: {remedy}."
    )
