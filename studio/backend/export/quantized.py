"""Write a model as a 4-bit checkpoint, which loads without its 16-bit weights and without quantizing them.

export_quantized("jetmoe/jetmoe-8b-chat", "jetmoe-8b-chat-nf4")      # STUDIO_MODEL may name the folder
"""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from transformers import AutoTokenizer

from studio.backend.export.base import writing
from studio.backend.export.export import Export, whole
from studio.backend.models import catalog, placement
from studio.backend.models.catalog import ModelEntry
from studio.backend.models.placement import Placement
from studio.backend.system.progress import Progress, reading

CARD = """# {title} in 4 bits

The weights of [{source}](https://huggingface.co/{source}) in NF4, written by JetMoE Studio with
`python -m studio export {source} --quantized --to DIR`. The studio loads it by its name or its folder, and so does this
code:

```python
import jetmoe  # reads 4-bit experts
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("THIS FOLDER")
```
"""


def export_quantized(model_id: str, to: str | Path, progress: Progress = lambda fraction, text: None) -> Export:
    """Write a model of the catalog to a new folder in 4 bits; `STUDIO_MODEL` may name that folder.

    Raises:
        StudioError: the model is unknown or does not fit, the folder isn't empty, or the disk is full; nothing is left
            behind then.
    """
    path, target = catalog.prepare(model_id, progress), Path(to)
    entry = catalog.entry(model_id)
    device = placement.placement(entry, "nf4").device
    with whole(target, int(entry.needs_gib["nf4"] * placement.GIB)) as folder:
        place = Placement(device, "nf4", torch.bfloat16)  # 16 bits even if they are emulated here: they are written
        model = placement.load_model(path, place, "name a smaller model", reading(progress))
        progress(1.0, "Writing the 4-bit weights …")
        with writing(folder):
            model.save_pretrained(folder)
            AutoTokenizer.from_pretrained(path).save_pretrained(folder)
            (folder / "README.md").write_text(_card(entry), encoding="utf-8")
    return Export(target, entry.id, None)


def _card(entry: ModelEntry) -> str:
    front = {
        "base_model": entry.id,
        "base_model_relation": "quantized",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": entry.licence.lower(),
        "tags": ["jetmoe", "mixture-of-experts", "4-bit"],
    }
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n{CARD.format(title=entry.title, source=entry.id)}"
