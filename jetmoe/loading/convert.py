"""Convert a checkpoint to 4 bits on disk, layer by layer; resumable."""

from __future__ import annotations

import hashlib
import json
import shutil
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from jetmoe.loading.checkpoint import (
    INDEX,
    TOKENIZER_FILES,
    CheckpointError,
    Progress,
    Stored,
    is_4bit,
    read_model_config,
    stored_tensors,
)
from jetmoe.loading.slots import check_slots, quantization_config, quantized_tensors, slots_of

# Stores the source and the settings of a conversion, in the output folder.
RECEIPT = "conversion.json"
BESIDE_WEIGHTS = (*TOKENIZER_FILES, "generation_config.json")
# Bytes per tensor for the fingerprint; enough to distinguish two trainings of one model.
SAMPLE_BYTES = 4096


@torch.no_grad()
def convert(
    folder: Path | str,
    to: Path | str,
    *,
    double_quantization: bool = False,
    progress: Progress = lambda done, total: None,
) -> None:
    """Write a 4-bit copy of a 16-bit checkpoint, one file per decoder layer; a second call resumes the conversion.

    Raises:
        CheckpointError: as in `load`, or `to` contains weights from another checkpoint or with other settings.
    """
    folder, to = Path(folder), Path(to)
    config, stored = read_model_config(folder), stored_tensors(folder)
    if is_4bit(stored):
        raise CheckpointError(f"{folder.name} is already 4-bit; use the folder of the 16-bit checkpoint.")
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    model.to(torch.bfloat16)
    slots = slots_of(model, True, double_quantization, torch.bfloat16)
    check_slots(slots, stored, False, config)
    _begin(to, {"double_quantization": double_quantization, "source_sha256": _fingerprint(stored)})
    done, total = 0, sum(tensor.nbytes for tensor in stored.values())
    weight_map: dict[str, str] = {}
    for number, (_, layer) in enumerate(groupby(slots, key=lambda slot: slot.name.split(".")[:3])):
        name, group = f"model-{number:05d}.safetensors", list(layer)
        if not (to / name).is_file():
            save_file(quantized_tensors(group, stored), to / f"{name}.part", metadata={"format": "pt"})
            (to / f"{name}.part").rename(to / name)
        with safe_open(to / name, framework="pt") as written:
            weight_map |= dict.fromkeys(written.keys(), name)
        done += sum(stored[slot.name].nbytes for slot in group if slot.name in stored)
        progress(done, total)
    config.quantization_config = quantization_config(double_quantization)
    config.save_pretrained(to)
    for file in folder.iterdir():
        if file.name in BESIDE_WEIGHTS:
            shutil.copyfile(file, to / file.name)
    size = sum((to / file).stat().st_size for file in set(weight_map.values()))
    (to / INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}, indent=1))
    progress(total, total)


def _begin(to: Path, receipt: dict[str, Any]) -> None:
    """Write the receipt, or raise CheckpointError if the folder holds weights that don't match it."""
    to.mkdir(parents=True, exist_ok=True)
    file = to / RECEIPT
    if not file.is_file() and not list(to.glob("*.safetensors")):
        part = to / f"{RECEIPT}.part"
        part.write_text(json.dumps(receipt, indent=1))
        part.rename(file)
    elif not file.is_file() or json.loads(file.read_text()) != receipt:
        raise CheckpointError(
            f"{to} holds weights from another checkpoint or with other settings. Convert to another folder, or "
            "delete this one first."
        )


def _fingerprint(stored: dict[str, Stored]) -> str:
    """Return a hash of the name, dtype, shape and first bytes of every tensor, independent of the location."""
    digest = hashlib.sha256()
    for name, tensor in sorted(stored.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        for part in tensor.files():
            with part.file.open("rb") as opened:
                opened.seek(part.start)
                digest.update(opened.read(min(SAMPLE_BYTES, part.nbytes)))
    return digest.hexdigest()
