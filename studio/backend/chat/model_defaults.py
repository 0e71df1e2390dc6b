"""What a model brings along for chat: its sampling settings, and the system prompt of its chat template.

defaults = model_defaults(catalog.entry("starter"), model.generation_config, tokenizer)
Sampling(**defaults.sampling)
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from transformers import GenerationConfig, PreTrainedTokenizerBase

from studio.backend.chat.sampling import Sampling
from studio.backend.data.prompt import default_system_prompt
from studio.backend.models.catalog import ModelEntry
from studio.errors import StudioError

logger = logging.getLogger(__name__)
NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
CARD = "its model card"
FILE = "its generation_config.json"


class ModelDefaults(NamedTuple):
    sampling: dict[str, Any] = {}
    """Settings of `Sampling` that the model recommends."""
    source: str = ""
    """Where they are from; empty if there are none."""
    system: str = ""
    """The system prompt that the chat template writes if there is none; empty if it writes none."""
    has_template: bool = True
    """Whether the model has a chat template; a base model without one continues texts."""


NO_DEFAULTS = ModelDefaults()


def model_defaults(
    entry: ModelEntry, generation: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase
) -> ModelDefaults:
    """Return the settings of the catalog, or else those of the model's generation_config.json."""
    system, has_template = default_system_prompt(tokenizer), bool(tokenizer.chat_template)
    if entry.sampling:
        return ModelDefaults(entry.sampling, CARD, system, has_template)
    stored = {} if generation is None else generation.to_diff_dict()
    found = {name: stored[name] for name in NAMES if _is_usable(name, stored.get(name))}
    return ModelDefaults(found, FILE if found else "", system, has_template)


def _is_usable(name: str, value: Any) -> bool:
    if value is None:
        return False
    try:
        Sampling(**{name: value})
    except StudioError as error:
        logger.warning("%s of the model's generation_config.json is left out. %s", name, error)
        return False
    return True
