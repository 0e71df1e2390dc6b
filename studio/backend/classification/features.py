"""Read the features of texts: the frozen model's last hidden state at the last token.

    features = read_features(model, texts, pad_id, run.folder / "features", keep_going)     # float32 [T, D]

Each text is read once, in batches of about one length. The features are stored in parts, so that an interrupted reading
continues after the last one. T texts; the other letters are declared in `jetmoe/routing.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from jetmoe.low_rank import without_adapters
from studio.backend.classification.head import padded
from studio.backend.data.packing import in_batches
from studio.backend.system.files import atomic_write

logger = logging.getLogger(__name__)
BATCH_TOKENS = 2048
PART_S = 10.0
"""Seconds of reading after which a part is stored."""


def read_features(
    model: Any,
    texts: Sequence[Sequence[int]],
    pad_id: int,
    folder: Path,
    keep_going: Callable[[int], bool] = lambda done: True,
) -> Tensor | None:
    """Return float32 `[T, D]` in the order of the texts, or None if `keep_going` returned False.

    Args:
        model: with a head, and with or without adapters, which are disabled meanwhile.
        folder: where parts are stored; those of an earlier reading of the same texts are used.
        keep_going: called with the number of texts read, after each batch.

    Raises:
        OSError: a part can't be written.
    """
    folder.mkdir(exist_ok=True)
    features, is_read = _stored(folder, len(texts), model.config.hidden_size)
    missing = [i for i in range(len(texts)) if not is_read[i]]
    part: list[int] = []
    began = time.monotonic()
    for batch in in_batches([len(texts[i]) for i in missing], BATCH_TOKENS):
        rows = [missing[i] for i in batch]
        features[rows] = last_hidden(model, [texts[i] for i in rows], pad_id)
        is_read[rows] = True
        part += rows
        goes_on = keep_going(int(is_read.sum()))
        if time.monotonic() - began > PART_S or not goes_on:
            _store(folder, features, part)
            part, began = [], time.monotonic()
        if not goes_on:
            return None
    if part:
        _store(folder, features, part)
    return features


@torch.no_grad()
def last_hidden(model: Any, texts: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    """Return float32 `[T, D]` on the CPU."""
    batch = {name: each.to(model.device) for name, each in padded(texts, pad_id).items()}  # [T, S]
    was_training = model.training
    model.eval()
    with without_adapters(model):
        hidden = model.model(**batch, use_cache=False).last_hidden_state  # [T, S, D]
    model.train(was_training)
    last = batch["attention_mask"].sum(dim=-1) - 1  # [T]
    features: Tensor = hidden[torch.arange(len(texts), device=hidden.device), last].float().cpu()
    return features


def _store(folder: Path, features: Tensor, rows: list[int]) -> None:
    data = save({"rows": torch.tensor(rows), "features": features[rows]})
    atomic_write(folder / f"{rows[0]:06}.safetensors", data)  # no two parts have the same texts


def _stored(folder: Path, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Return the features `[T, D]` that are stored, and which of them are, bool `[T]`; damaged parts are deleted."""
    features, is_read = torch.zeros(count, size), torch.zeros(count, dtype=torch.bool)
    for file in folder.glob("*.safetensors"):
        try:
            part = load_file(file)
            features[part["rows"]] = part["features"]
        except (SafetensorError, KeyError, IndexError, RuntimeError) as error:
            logger.warning("%s is damaged (%s); its texts are read again.", file.name, error)
            file.unlink()
            continue
        is_read[part["rows"]] = True
    return features, is_read
