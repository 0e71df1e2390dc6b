"""What PEFT does with adapters that exist: several at once, switching, merging, saving, swapping."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import peft
import torch
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from torch import Tensor

from tests.benchmarks.compatibility.names import LINEAR, MOE, OTHER, OTHERS
from tests.benchmarks.compatibility.place import (
    BATCH,
    FEW,
    Place,
    Results,
    adapt,
    attempt,
    fill,
    forward_and_backward,
    generated,
    gradients,
    logits,
    lora,
    lora_on_all,
    require_change,
    trainable,
)
from tests.benchmarks.compatibility.registry import row

GROUP = "Operations on adapters"


def two(place: Place, make: Any = lora_on_all, **options) -> Any:
    """Two adapters of different contents, the first one active."""
    adapted = adapt(place.model(), make(**options), name="one")
    adapted.add_adapter("two", make(**options))
    adapted.set_adapter("two")
    fill(adapted, adapter="two")
    adapted.set_adapter("one")
    return adapted.eval()


@row(GROUP, "set_adapter", four_bits=True)
def set_adapter(place: Place) -> Results:
    adapted = two(place)
    results = forward_and_backward(adapted) | {"few.one": logits(adapted, FEW)}
    adapted.set_adapter("two")
    results |= {"two": logits(adapted), "few.two": logits(adapted, FEW)}
    require_change(results["logits"], results["two"])
    return results | {f"second.{name}": one for name, one in forward_and_backward(adapted).items()}


@row(GROUP, "several active adapters", four_bits=True)
def several_active(place: Place) -> Results:
    adapted = two(place)
    adapted.base_model.set_adapter(["one", "two"])
    results = forward_and_backward(adapted) | {"few": logits(adapted, FEW), "generated": generated(adapted)}
    adapted.base_model.set_adapter(["two", "one"])
    return results | {"reversed": logits(adapted)}


@row(GROUP, "several active adapters of different ranks on linear layers")
def several_ranks(place: Place) -> Results:
    adapted = adapt(place.model(), lora(target_modules="all-linear"), name="one")
    adapted.add_adapter("two", lora(r=2, target_modules=[LINEAR]))
    adapted.base_model.set_adapter(["one", "two"])
    fill(adapted)
    return forward_and_backward(adapted) | {"few": logits(adapted, FEW)}


@row(GROUP, "adapters on different expert tensors")
def different_targets(place: Place) -> Results:
    adapted = adapt(place.model(), lora(target_parameters=MOE), name="one")
    results = attempt("added", lambda: adapted.add_adapter("two", lora()) or torch.zeros(1))
    adapted.set_adapter("two")
    fill(adapted, adapter="two")
    return results | {"two": logits(adapted), "few": logits(adapted, FEW)}


COMBINATIONS = (
    "linear",
    "cat",
    "svd",
    "ties",
    "ties_svd",
    "dare_linear",
    "dare_ties",
    "magnitude_prune",
    "magnitude_prune_svd",
)


def combined(place: Place, combination: str) -> Results:
    adapted = two(place, lora, target_modules=[LINEAR, OTHER])
    torch.manual_seed(0)
    density = {} if combination in ("linear", "cat", "svd") else {"density": 1.0 if "dare" in combination else 0.5}
    adapted.add_weighted_adapter(["one", "two"], [0.7, 0.6], "both", combination_type=combination, **density)
    adapted.set_adapter("both")
    return {"logits": logits(adapted), "few": logits(adapted, FEW)}


for combination in COMBINATIONS:
    row(GROUP, f"add_weighted_adapter, {combination}", tolerance=1e-4)(partial(combined, combination=combination))


@row(GROUP, "add_weighted_adapter on experts")
def combined_experts(place: Place) -> Results:
    adapted = two(place)
    adapted.add_weighted_adapter(["one", "two"], [0.7, 0.6], "both", combination_type="linear")
    adapted.set_adapter("both")
    return {"logits": logits(adapted)}


@row(GROUP, "delete_adapter", four_bits=True)
def delete_adapter(place: Place) -> Results:
    adapted = two(place)
    adapted.delete_adapter("one")
    results = {"two": logits(adapted), "few": logits(adapted, FEW)}
    adapted.add_adapter("one", lora_on_all())
    adapted.set_adapter("one")
    fill(adapted, 0.2, "one")
    return results | {"again": logits(adapted), "few again": logits(adapted, FEW)}


@row(GROUP, "disable_adapter", four_bits=True)
def disable_adapter(place: Place) -> Results:
    adapted = two(place)
    with adapted.disable_adapter():
        results = {"disabled": logits(adapted), "few": logits(adapted, FEW), "generated": generated(adapted)}
    results["enabled"] = logits(adapted)
    require_change(results["disabled"], results["enabled"])
    return results


@row(GROUP, "base_model.disable_adapter_layers and enable_adapter_layers")
def disable_layers(place: Place) -> Results:
    adapted = two(place)
    adapted.base_model.disable_adapter_layers()
    results = {"disabled": logits(adapted, FEW)}
    adapted.base_model.enable_adapter_layers()
    return results | {"enabled": logits(adapted, FEW)} | forward_and_backward(adapted)


def merged(place: Place, config: peft.PeftConfig) -> Results:
    adapted = adapt(place.model(), config)
    results = {"before": logits(adapted)}
    adapted.merge_adapter()
    results |= {"merged": logits(adapted), "few": logits(adapted, FEW), "generated": generated(adapted)}
    with adapted.disable_adapter():
        results["disabled while merged"] = logits(adapted)
    results["after disabling"] = logits(adapted)
    adapted.unmerge_adapter()
    return results | {"unmerged": logits(adapted), "few unmerged": logits(adapted, FEW)} | forward_and_backward(adapted)


for name, config in {
    f"LoRA on {LINEAR} and {OTHERS}": lora(target_modules="all-linear"),
    "LoRA on experts": lora_on_all(),
    "DoRA": lora(use_dora=True),
    "LoHa": peft.LoHaConfig(r=4, target_modules=[LINEAR], task_type="CAUSAL_LM"),
}.items():
    row(GROUP, f"merge_adapter, disable_adapter and unmerge_adapter, {name}")(partial(merged, config=config))


@row(GROUP, "merge_adapter of experts: works or names a remedy", four_bits=True)
def merge_of_experts(place: Place) -> Results:
    """Rounding the sum to 4 bits again changes it, so its values are not compared."""
    adapted = two(place)
    adapted.merge_adapter()
    return {"shape": torch.tensor(logits(adapted).shape)}


@row(GROUP, "merge_adapter under disable_adapter")
def merged_under_disabled(place: Place) -> Results:
    adapted = two(place)
    with adapted.disable_adapter():
        adapted.merge_adapter()
        results = {"inside": logits(adapted)}
    return results | {"outside": logits(adapted)}


@row(GROUP, "merge_and_unload with safe_merge")
def safe_merge(place: Place) -> Results:
    merged = two(place).merge_and_unload(safe_merge=True)
    return {"logits": logits(merged)} | {f"state.{k}": v for k, v in merged.state_dict().items()}


@row(GROUP, "merge_and_unload of two adapters by name")
def merge_named(place: Place) -> Results:
    merged = two(place).merge_and_unload(adapter_names=["one", "two"])
    return {"logits": logits(merged), "few": logits(merged, FEW)}


@row(GROUP, "merge one adapter, train another")
def merge_one_train_other(place: Place) -> Results:
    adapted = two(place)
    adapted.merge_adapter(["one"])
    adapted.set_adapter("two")
    return forward_and_backward(adapted)


@row(GROUP, "unload")
def unload(place: Place) -> Results:
    model = two(place).unload()
    results = {"logits": logits(model)}
    return results | {f"again.{name}": one for name, one in forward_and_backward(adapt(model, lora_on_all())).items()}


@row(GROUP, "merge_and_unload, then a new adapter")
def merged_then_new(place: Place) -> Results:
    model = two(place).merge_and_unload()
    return forward_and_backward(adapt(model, lora_on_all(), std=0.05))


@row(GROUP, "hotswap_adapter", four_bits=True)
def hotswap(place: Place) -> Results:
    for number, std in enumerate((0.1, 0.2)):
        adapt(place.model(), lora_on_all(lora_alpha=6 + number), std).save_pretrained(place.folder / str(number))
    adapted = peft.PeftModel.from_pretrained(place.model(), place.folder / "0").eval()
    results = {"before": logits(adapted, FEW)}
    hotswap_adapter(adapted, place.folder / "1", adapter_name="default")
    results |= {"after": logits(adapted, FEW), "batch": logits(adapted)}
    require_change(results["before"], results["after"])
    return results


@row(GROUP, "prepare_model_for_compiled_hotswap on linear layers")
def prepared_hotswap(place: Place) -> Results:
    for number in range(2):
        adapt(place.model(), lora(r=2 + 2 * number), 0.1 + 0.1 * number).save_pretrained(place.folder / str(number))
    adapted = peft.PeftModel.from_pretrained(place.model(), place.folder / "0").eval()
    prepare_model_for_compiled_hotswap(adapted, target_rank=4)
    results = {"before": logits(adapted, FEW), "before, batch": logits(adapted)}
    hotswap_adapter(adapted, place.folder / "1", adapter_name="default")
    return results | {"after": logits(adapted, FEW), "after, batch": logits(adapted)}


@row(GROUP, "writes to adapter tensors through .data", four_bits=True)
def writes_through_data(place: Place) -> Results:
    """As moving averages and samplers of weights do; the tensor's version does not change."""
    adapted = two(place)
    results = {"before": logits(adapted, FEW)}
    for name, one in adapted.named_parameters():
        if "lora_B.one" in name:
            one.data.mul_(1.5)
    results["scaled in place"] = logits(adapted, FEW)
    for name, one in adapted.named_parameters():
        if "lora_A.one" in name:
            one.data = one.data * 1.5
    results |= {"replaced": logits(adapted, FEW), "batch": logits(adapted)}
    require_change(results["before"], results["scaled in place"])
    return results


@row(GROUP, "writes to zero adapter tensors through .data")
def writes_to_zero(place: Place) -> Results:
    adapted = adapt(place.model(), lora_on_all(), std=None)
    results = {"zero": logits(adapted, FEW)}
    for name, one in adapted.named_parameters():
        if "lora_B" in name:
            one.data.fill_(0.05)
        elif "lora_A" in name:
            one.data.fill_(0.02)
    return results | {"filled": logits(adapted, FEW)}


@row(GROUP, "writes through numpy")
def writes_through_numpy(place: Place) -> Results:
    adapted = two(place)
    results = {"before": logits(adapted, FEW)}
    for name, one in adapted.named_parameters():
        if "lora_B.one" in name:
            one.detach().numpy()[...] *= 1.5
    return results | {"after": logits(adapted, FEW)}


@row(GROUP, "scaling changed by set_scale, scale_layer and unscale_layer", four_bits=True)
def scale_layers(place: Place) -> Results:
    adapted = two(place)
    wrappers = [one for one in adapted.modules() if hasattr(one, "scale_layer")]
    results = {"before": logits(adapted, FEW)}
    for one in wrappers:
        one.set_scale("one", 2.0)
    results["set"] = logits(adapted, FEW)
    for one in wrappers:
        one.scale_layer(0.5)
    results["scaled"] = logits(adapted, FEW)
    for one in wrappers:
        one.unscale_layer()
    return results | {"unscaled": logits(adapted, FEW)}


@row(GROUP, "rescale_adapter_scale")
def rescale(place: Place) -> Results:
    from peft.helpers import rescale_adapter_scale

    adapted = two(place)
    with rescale_adapter_scale(adapted, 0.5):
        results = {"inside": logits(adapted, FEW)}
    return results | {"outside": logits(adapted, FEW)}


@row(GROUP, "save_pretrained and from_pretrained of two adapters", four_bits=True)
def save_and_load(place: Place) -> Results:
    two(place).save_pretrained(place.folder)
    loaded = peft.PeftModel.from_pretrained(place.model(), place.folder / "one", adapter_name="one", is_trainable=True)
    loaded.load_adapter(place.folder / "two", adapter_name="two")
    results = forward_and_backward(loaded.eval())
    loaded.set_adapter("two")
    return results | {"two": logits(loaded)}


@row(GROUP, "low_cpu_mem_usage", four_bits=True)
def low_cpu_mem_usage(place: Place) -> Results:
    two(place).save_pretrained(place.folder)
    loaded = peft.PeftModel.from_pretrained(place.model(), place.folder / "one", low_cpu_mem_usage=True).eval()
    results = {"loaded": logits(loaded)}
    adapted = peft.get_peft_model(place.model(), lora_on_all(), low_cpu_mem_usage=True)
    state = peft.get_peft_model_state_dict(loaded)
    peft.set_peft_model_state_dict(adapted, state, low_cpu_mem_usage=True)
    return results | {"set": logits(adapted.eval())}


@row(GROUP, "adapter loaded under inference_mode", four_bits=True)
def loaded_in_inference_mode(place: Place) -> Results:
    two(place).save_pretrained(place.folder)
    with torch.inference_mode():
        loaded = peft.PeftModel.from_pretrained(place.model(), place.folder / "one").eval()
        results = {"few": loaded(FEW).logits.clone(), "batch": loaded(BATCH).logits.clone()}
        results["generated"] = generated(loaded).clone()
    return {name: one.clone() for name, one in results.items()}


@row(GROUP, "second adapter loaded under inference_mode, used outside")
def second_in_inference_mode(place: Place) -> Results:
    two(place).save_pretrained(place.folder)
    loaded = peft.PeftModel.from_pretrained(place.model(), place.folder / "one", adapter_name="one").eval()
    results = {"one": logits(loaded, FEW)}
    with torch.inference_mode():
        loaded.load_adapter(place.folder / "two", adapter_name="two")
    loaded.set_adapter("two", inference_mode=True)
    return results | {"two": logits(loaded, FEW), "two, batch": logits(loaded)}


def mixed_batch(place: Place, config: peft.PeftConfig) -> Results:
    """Each row with another adapter, and what each gives for itself."""
    adapted = adapt(place.model(), config, name="one")
    adapted.add_adapter("two", copy.deepcopy(config))
    adapted.set_adapter("two")
    fill(adapted, adapter="two")
    adapted.set_adapter("one")
    adapted.eval()
    names = ["one", "two", "__base__"]
    expected = [logits(adapted, BATCH[:1])]
    adapted.set_adapter("two")
    expected.append(logits(adapted, BATCH[1:2]))
    with adapted.disable_adapter():
        expected.append(logits(adapted, BATCH[2:]))
    adapted.set_adapter("one")
    results = {"logits.expected": torch.cat(expected)}
    results["logits"] = logits(adapted, adapter_names=names)
    return results | attempt("generated", lambda: generated(adapted, BATCH, adapter_names=names))


for name, config in {
    LINEAR: lora(),
    f"{LINEAR} and the head": lora(target_modules=[LINEAR, "lm_head"]),
    "embed_tokens": lora(target_modules=["embed_tokens"]),
    OTHERS: lora(target_modules=[OTHER]),
    "experts": lora(target_parameters=MOE),
    f"{LINEAR} with DoRA": lora(use_dora=True),
    f"{LINEAR} with RoAd": peft.RoadConfig(target_modules=[LINEAR], group_size=4, task_type="CAUSAL_LM"),
}.items():
    row(GROUP, f"mixed batch by adapter_names on {name}", four_bits=name == LINEAR)(partial(mixed_batch, config=config))


@row(GROUP, "get_peft_model_state_dict and set_peft_model_state_dict", four_bits=True)
def state_dicts(place: Place) -> Results:
    state = peft.get_peft_model_state_dict(two(place), adapter_name="one")
    adapted = peft.get_peft_model(place.model(), lora_on_all()).eval()
    results = {"zero": logits(adapted, FEW)}
    peft.set_peft_model_state_dict(adapted, {name: one.clone() for name, one in state.items()})
    return (
        results | {"logits": logits(adapted), "few": logits(adapted, FEW)} | {f"state.{k}": v for k, v in state.items()}
    )


@row(GROUP, "load_state_dict between two few-token passes")
def load_state_between(place: Place) -> Results:
    adapted = two(place)
    results = {"before": logits(adapted, FEW)}
    adapted.load_state_dict({k: v * 1.5 for k, v in adapted.state_dict().items() if "lora_" in k}, strict=False)
    return results | {"after": logits(adapted, FEW)}


@row(GROUP, "load_state_dict with assign=True")
def load_state_assigned(place: Place) -> Results:
    adapted = two(place)
    results = {"before": logits(adapted, FEW)}
    adapted.load_state_dict(
        {k: v * 1.5 for k, v in adapted.state_dict().items() if "lora_" in k}, strict=False, assign=True
    )
    return results | {"after": logits(adapted, FEW)}


def in_half(place: Place, autocast: bool) -> Results:
    adapted = peft.get_peft_model(place.model(dtype=torch.bfloat16), lora_on_all(), autocast_adapter_dtype=autocast)
    fill(adapted, 0.05)
    output = forward_and_backward(adapted.eval())
    kinds = {name: torch.tensor(one.element_size()) for name, one in gradients(adapted).items()}
    return {"loss": output["loss"]} | {f"size of {name}": one for name, one in kinds.items()}


for autocast in (True, False):
    row(GROUP, f"bf16 with autocast_adapter_dtype={autocast}", tolerance=5e-3)(partial(in_half, autocast=autocast))


@row(GROUP, "prepare_model_for_kbit_training without checkpointing", four_bits=True)
def prepared(place: Place) -> Results:
    model = peft.prepare_model_for_kbit_training(place.model(), use_gradient_checkpointing=False)
    return forward_and_backward(adapt(model, lora_on_all()))


@row(GROUP, "prepare_model_for_kbit_training with checkpointing", four_bits=True)
def prepared_checkpointing(place: Place) -> Results:
    model = peft.prepare_model_for_kbit_training(place.model(), gradient_checkpointing_kwargs={"use_reentrant": False})
    expected = forward_and_backward(adapt(place.model(), lora_on_all()))
    results = forward_and_backward(adapt(model, lora_on_all()).train(), use_cache=False)
    return results | {f"{name}.expected": one for name, one in expected.items()}


@row(GROUP, "deepcopy of an adapted model", four_bits=True)
def deepcopied(place: Place) -> Results:
    adapted = two(place)
    before = logits(adapted, FEW)
    copied = copy.deepcopy(adapted)
    for name, one in copied.named_parameters():
        if "lora_" in name:
            one.data.mul_(2)
    return {"before": before, "copy": logits(copied, FEW), "original": logits(adapted, FEW)} | forward_and_backward(
        copied
    )


@row(GROUP, "inject_adapter_in_model")
def injected(place: Place) -> Results:
    model = peft.inject_adapter_in_model(lora_on_all(), place.model())
    fill(model)
    return forward_and_backward(model.eval()) | {"few": logits(model, FEW)}


@row(GROUP, "model.add_adapter, set_adapter and disable_adapters of transformers", four_bits=True)
def transformers_adapters(place: Place) -> Results:
    model = place.model()
    model.add_adapter(lora_on_all(), adapter_name="one")
    model.add_adapter(lora_on_all(), adapter_name="two")
    results = {}
    for name in ("one", "two"):
        model.set_adapter(name)
        fill(model, adapter=name)
        results[name] = logits(model.eval(), FEW)
    model.disable_adapters()
    results["disabled"] = logits(model, FEW)
    model.enable_adapters()
    results["enabled"] = logits(model, FEW)
    model.delete_adapter("two")
    model.set_adapter("one")
    return results | {"one again": logits(model, FEW)}


@row(GROUP, "adapter folder loaded by AutoModelForCausalLM")
def loaded_by_auto_class(place: Place) -> Results:
    from transformers import AutoModelForCausalLM

    adapted = two(place)
    adapted.peft_config["one"].base_model_name_or_path = str(place.path())
    adapted.save_pretrained(place.folder)
    return {"logits": logits(AutoModelForCausalLM.from_pretrained(place.folder / "one").eval())}


@row(GROUP, "AutoPeftModelForCausalLM")
def auto_peft(place: Place) -> Results:
    adapted = two(place)
    adapted.peft_config["one"].base_model_name_or_path = str(place.path())
    adapted.save_pretrained(place.folder)
    return {"logits": logits(peft.AutoPeftModelForCausalLM.from_pretrained(place.folder / "one").eval())}


@row(GROUP, "set_requires_grad of one adapter")
def requires_grad(place: Place) -> Results:
    adapted = two(place)
    adapted.base_model.set_adapter(["one", "two"])
    adapted.set_requires_grad("one", requires_grad=False)
    return forward_and_backward(adapted)


@row(GROUP, "two steps of the LoRA-FA optimizer", tolerance=1e-4)  # it divides gradients by their size
def lora_fa(place: Place) -> Results:
    from peft.optimizers import create_lorafa_optimizer

    adapted = adapt(place.model(), lora(target_modules=[LINEAR, OTHER]))
    optimizer = create_lorafa_optimizer(adapted, r=4, lora_alpha=6, lr=1e-2)
    for _ in range(2):
        adapted(BATCH, labels=BATCH).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"few": logits(adapted, FEW)} | trainable(adapted)


@row(GROUP, "optimizer steps between few-token passes", four_bits=True)
def steps_between(place: Place) -> Results:
    adapted = adapt(place.model(), lora_on_all())
    optimizer = torch.optim.SGD([one for one in adapted.parameters() if one.requires_grad], lr=0.1)
    results: dict[str, Tensor] = {}
    for step in range(3):
        results[f"few {step}"] = logits(adapted, FEW)
        adapted(BATCH, labels=BATCH).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return results | {"few": logits(adapted, FEW), "logits": logits(adapted)}


@row(GROUP, "adapter moved to float64")
def moved(place: Place) -> Results:
    adapted = two(place)
    results = {"before": logits(adapted, FEW)}
    return results | {"after": logits(adapted.double(), FEW), "batch": logits(adapted)}
