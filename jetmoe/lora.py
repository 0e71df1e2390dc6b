"""LoRA configurations for JetMoE, by preset; `peft.get_peft_model(model, lora_config("all"))` does the rest."""

from __future__ import annotations

from typing import Any, NamedTuple

import peft


class Targets(NamedTuple):
    modules: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()


# Both kinds of experts have an input_linear and an output_linear; what stands before them tells them apart.
MOA = ("experts.input_linear.weight", "experts.output_linear.weight")
MOE = ("mlp.input_linear.weight", "mlp.output_linear.weight")
PRESETS = {
    "attention": Targets(("kv_proj",), MOA),
    "experts": Targets((), MOE),
    "moa": Targets((), MOA),
    "all": Targets(("kv_proj",), (*MOA, *MOE)),
    "hot": Targets(("kv_proj",), (*MOA, *MOE)),  # with `mask_gradients`
    "router": Targets(("router.layer",), ()),
}


class AdapterError(ValueError):
    """The adapter can't be made, loaded or merged; the message says why and what to do."""


def lora_config(preset: str, r: int = 16, lora_alpha: float = 32, task_type: str = "CAUSAL_LM") -> peft.LoraConfig:
    """The PEFT configuration of a preset of `PRESETS`, or of several joined by "+".

    With task_type "SEQ_CLS" the head of a JetMoeForSequenceClassification is trained whole and saved with the adapter.

    Raises:
        AdapterError: no such preset.
    """
    names = preset.split("+")
    if unknown := [name for name in names if name not in PRESETS]:
        raise AdapterError(f"There is no preset {', '.join(unknown)}; pick of {', '.join(PRESETS)}, joined by '+'.")
    modules = {module for name in names for module in PRESETS[name].modules}
    parameters = {parameter for name in names for parameter in PRESETS[name].parameters}
    return peft.LoraConfig(
        r=r,
        lora_alpha=lora_alpha,  # type: ignore[arg-type]
        target_modules=sorted(modules),
        target_parameters=sorted(parameters) or None,
        task_type=task_type,
        modules_to_save=["score"] if task_type == "SEQ_CLS" else None,
    )


def require_free_routers(config: Any, preset: str, insist: bool = False) -> None:
    """Raises AdapterError: the preset trains routers whose rows the model ties, which breaks its exactness."""
    if "router" in preset.split("+") and config.expert_groups is not None and not insist:
        raise AdapterError(
            "This model ties its router rows, so that each token gets one whole copy of the dense layer; training its "
            "routers unties them and costs that exactness. Leave out 'router', or insist on it."
        )
