"""LoRA presets for JetMoE: `peft.get_peft_model(model, lora_config("all"))` adds an adapter."""

from __future__ import annotations

from typing import Any, NamedTuple

import peft

from jetmoe.low_rank import AdapterError


class Targets(NamedTuple):
    modules: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()


# MoA and MoE experts both have an input_linear and an output_linear; the prefix distinguishes them.
MOA = ("experts.input_linear.weight", "experts.output_linear.weight")
MOE = ("mlp.input_linear.weight", "mlp.output_linear.weight")
PRESETS = {
    "attention": Targets(("kv_proj",), MOA),
    "experts": Targets((), MOE),
    "moa": Targets((), MOA),
    "all": Targets(("kv_proj",), (*MOA, *MOE)),
    "hot": Targets(("kv_proj",), (*MOA, *MOE)),  # use with `mask_gradients`
    "router": Targets(("router.layer",), ()),
}


# Options that PEFT supports on linear layers only.
LINEAR_ONLY = ("lora_dropout", "use_dora", "lora_bias", "fan_in_fan_out", "velora_config", "kasa_config")


def lora_config(
    preset: str, r: int = 16, lora_alpha: float = 32, task_type: str = "CAUSAL_LM", **options: Any
) -> peft.LoraConfig:
    """Return the PEFT configuration of a preset in `PRESETS`, or of several joined by "+".

    With task_type "SEQ_CLS", all weights of the classification head are trained and saved with the adapter.

    Args:
        options: other arguments of `peft.LoraConfig`.

    Raises:
        AdapterError: the preset does not exist, or experts don't support an option.
    """
    names = preset.split("+")
    if unknown := [name for name in names if name not in PRESETS]:
        raise AdapterError(f"There is no preset {', '.join(unknown)}; choose from {', '.join(PRESETS)}, joined by '+'.")
    modules = {module for name in names for module in PRESETS[name].modules}
    parameters = {parameter for name in names for parameter in PRESETS[name].parameters}
    if parameters and (odd := [name for name in LINEAR_ONLY if options.get(name)]):
        raise AdapterError(
            f"Experts don't support {', '.join(odd)}, because their LoRA is on 3-D weights. Leave it out, or use "
            "peft.LoraConfig(target_modules=['kv_proj'], ...) without experts."
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
    if "router" in preset.split("+") and config.expert_groups is not None and not insist:
        raise AdapterError(
            "This model ties its router rows so that each token uses one complete copy of the dense layer. Training "
            "the routers unties them, and the copies are no longer complete. Leave out 'router', or set insist."
        )
