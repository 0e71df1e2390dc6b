"""LoRA presets: `peft.get_peft_model(model, lora_config("all", family="jetmoe"))` adds an adapter."""

from __future__ import annotations

from typing import Any

import peft

from jetmoe.families import FAMILIES
from jetmoe.low_rank import AdapterError

# Options that PEFT supports on linear layers only.
LINEAR_ONLY = ("lora_dropout", "use_dora", "lora_bias", "fan_in_fan_out", "velora_config", "kasa_config")


def lora_config(
    preset: str,
    r: int = 16,
    lora_alpha: float = 32,
    task_type: str = "CAUSAL_LM",
    family: str = "jetmoe",
    **options: Any,
) -> peft.LoraConfig:
    """Return the PEFT configuration of a preset, or of several joined by "+".

    The presets are "attention", "experts", "all", "router", "hot" (use with `mask_gradients`) and, for JetMoE, "moa".

    With task_type "SEQ_CLS", all weights of the classification head are trained and saved with the adapter.

    Args:
        family: the model type of the model, `model.config.model_type`.
        options: other arguments of `peft.LoraConfig`.

    Raises:
        AdapterError: the family or the preset does not exist, or experts don't support an option.
    """
    if family not in FAMILIES:
        raise AdapterError(f"There is no family {family!r}; choose from {', '.join(FAMILIES)}.")
    presets, names = FAMILIES[family].presets, preset.split("+")
    if unknown := [name for name in names if name not in presets]:
        raise AdapterError(
            f"{FAMILIES[family].name} has no preset {', '.join(unknown)}; choose from {', '.join(presets)}, joined by "
            "'+'."
        )
    modules = {module for name in names for module in presets[name].modules}
    parameters = {parameter for name in names for parameter in presets[name].parameters}
    if parameters and (odd := [name for name in LINEAR_ONLY if options.get(name)]):
        raise AdapterError(
            f"Experts don't support {', '.join(odd)}, because their LoRA is on 3-D weights. Leave it out, or use "
            f"peft.LoraConfig(target_modules={list(FAMILIES[family].projections)}, ...) without experts."
        )
    return peft.LoraConfig(
        r=r,
        lora_alpha=lora_alpha,  # type: ignore[arg-type]
        target_modules=sorted(modules),
        target_parameters=sorted(parameters) or None,
        task_type=task_type,
        **{"modules_to_save": ["score"] if task_type == "SEQ_CLS" else None, **options},
    )


def require_free_routers(config: Any, preset: str, insist: bool = False) -> None:
    """Raise AdapterError if the preset trains tied router rows, which ends the equivalence to the dense model."""
    if "router" in preset.split("+") and getattr(config, "expert_groups", None) is not None and not insist:
        raise AdapterError(
            "This model ties its router rows so that each token uses one complete copy of the dense layer. Training "
            "the routers unties them, and the copies are no longer complete. Leave out 'router', or set insist."
        )
