"""Record the routing of a fixed text before and during training, and measure its drift.

probe = DriftProbe(model, tokenizer, text="")
probe.measure(model)         # the values of a "routing" event
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from jetmoe import RoutingRecorder, RoutingTrace
from jetmoe.low_rank import without_adapters
from studio.analysis.drift import broken_slot_sets, drift
from studio.analysis.load import Unit, load
from studio.backend.data.prompt import encode_plain

MAX_TOKENS = 512
# Several kinds of text, so that experts for one of them show up.
TEXT = """The old lighthouse keeper climbed the stairs one last time and looked out over the grey water.
How do plants make food? They take light, water and carbon dioxide, and give off oxygen.
def mean(values):
    return sum(values) / len(values)
Le train pour Lyon part à huit heures, mais il est souvent en retard en hiver.
La biblioteca abre a las nueve y cierra cuando se va el último lector.
In 1911 the committee met twice; 14 of its 23 members voted for the proposal, which cost $4,200.
Idiot, n. A member of a large and powerful tribe whose influence in human affairs has always been dominant."""


class DriftProbe:
    """Record the routing of a fixed text.

    Args:
        text: the text; if empty, the studio's default. Only its first 512 tokens are used.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, text: str = "") -> None:
        self.token_ids = encode_plain(tokenizer, text or TEXT)[:MAX_TOKENS]
        self.text = tokenizer.decode(self.token_ids)
        with without_adapters(model):
            self.base = self.trace(model)
        self.unit: Unit = "group" if self.base.is_tied else "expert"

    def measure(self, model: Any) -> dict[str, Any]:
        """Return the values of a "routing" event: means over all routers, values `[L][N]` and load `[L][N][U]`."""
        trace = self.trace(model)
        moved = drift(self.base, trace, self.unit)
        by_layer = {**vars(moved), "entropy": trace.entropy.astype(np.float64).mean(axis=-1)}
        values: dict[str, Any] = {name: round(float(each.mean()), 6) for name, each in by_layer.items()}
        values["by_layer"] = {name: each.round(5).tolist() for name, each in by_layer.items()}
        values["load"] = load(trace, self.unit).round(5).tolist()
        values |= {"unit": self.unit, "kinds": list(trace.kinds), "tokens": len(trace)}
        if trace.is_tied:
            values["broken_slot_sets"] = broken_slot_sets(trace)
        return values

    @torch.no_grad()
    def trace(self, model: Any) -> RoutingTrace:
        ids = torch.tensor([self.token_ids], device=model.device)
        recorder = RoutingRecorder(model, len(self.token_ids))
        # Skip the logits of a language model head, which are expensive; a classification head is cheap.
        options = {"skip_logits": True} if hasattr(model, "lm_head") else {}
        model(input_ids=ids, use_cache=False, recorder=recorder, **options)
        return recorder.trace(self.token_ids, [""] * len(self.token_ids), True, with_probs=True)
