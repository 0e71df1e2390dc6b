"""The state of the model that answers, for the page and the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerFast

from studio.backend.chat.decoder import Decoder
from studio.backend.chat.loading import Change
from studio.backend.chat.model_defaults import NO_DEFAULTS, ModelDefaults, model_defaults
from studio.backend.models import catalog
from studio.backend.models.placement import GIB, Placement


@dataclass(frozen=True)
class EngineStatus:
    state: Literal["empty", "preparing", "loading", "ready", "failed"] = "empty"
    model_id: str | None = None
    text: str = "No model is loaded."
    """A sentence for the user."""
    progress: float | None = None
    """0 to 1, or None if unknown."""
    speed: str = ""
    """"native", "eager", "compiling", "compiled", or "eager: " with the reason."""
    context_size: int = 0
    precision: str = ""
    """"nf4", "bf16", "fp16" or "fp32"."""
    memory: str = ""
    """Memory of the weights and the cache, and the share of parameters in 4 bits."""
    title: str = ""
    """Name of the model that answers."""
    warning: str = ""
    """What is wrong with the machine, as `Placement` says it."""
    defaults: ModelDefaults = NO_DEFAULTS
    change: Change | None = None
    """Another model that is being loaded, or that could not be loaded."""


def ready_status(model_id: str, place: Placement, decoder: Decoder, tokenizer: PreTrainedTokenizerFast) -> EngineStatus:
    """Return the status of a model that was just loaded."""
    # A 4-bit checkpoint stays 4-bit, whatever precision was requested.
    precision = "nf4" if decoder.quantized_share else place.precision
    entry = catalog.entry(model_id)
    text = f"{entry.title} in {precision} on the {place.device.upper()}."
    return EngineStatus(
        "ready",
        model_id,
        f"{text} {place.notice}".strip(),
        1.0,
        context_size=decoder.context_size,
        precision=precision,
        title=entry.title,
        warning=place.warning,
        defaults=model_defaults(entry, decoder.model.generation_config, tokenizer),
    )


def memory_text(decoder: Decoder, cache_bytes: int) -> str:
    """Return the memory use, as in "weights 4.6 GiB, cache 0.2 GiB, 97 % of parameters in 4-bit"."""
    parts = [f"weights {decoder.weight_bytes / GIB:.2f} GiB"]
    if cache_bytes:
        parts.append(f"cache {cache_bytes / GIB:.2f} GiB")
    share = decoder.quantized_share
    return ", ".join([*parts, f"{share:.0%} of parameters in 4-bit".replace("%", " %")] if share else parts)
