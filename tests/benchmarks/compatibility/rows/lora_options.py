"""LoRA's options, on linear layers and on the expert tensors."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from functools import partial
from typing import Any

import peft
import torch
from torch import Tensor

from tests.benchmarks.compatibility.names import HERE, LINEAR, MOA, MOE, OTHER, OTHERS
from tests.benchmarks.compatibility.place import (
    BATCH,
    FEW,
    PADDED,
    Place,
    Results,
    adapt,
    attempt,
    forward_and_backward,
    generated,
    logits,
    lora,
    lora_on_all,
    require_change,
)
from tests.benchmarks.compatibility.registry import row

GROUP = "LoRA"


def check(place: Place, config: peft.LoraConfig, kind: str = "tied", std: float | None = 0.1) -> Results:
    """Forward, backward, a few tokens, decoding, and saved and loaded again; merged and disabled."""
    model = place.model(kind)
    before = logits(model)
    adapted = adapt(model, config, std)
    results = forward_and_backward(adapted)
    if std is not None:
        require_change(before, results["logits"])
    results |= {"few": logits(adapted, FEW), "generated": generated(adapted)}

    def saved() -> Tensor:
        adapted.save_pretrained(place.folder / "adapter")
        loaded = peft.PeftModel.from_pretrained(place.model(kind), place.folder / "adapter").eval()
        return logits(loaded)

    def disabled() -> Tensor:
        with adapted.disable_adapter():
            return logits(adapted)

    results |= attempt("loaded", saved) | attempt("disabled", disabled)
    if not place.four_bits:  # merged weights would be rounded to 4 bits once more
        results |= attempt("merged", lambda: logits(adapted.merge_and_unload()))
    return results


OPTIONS: dict[str, dict[str, Any]] = {
    f"on {OTHERS}": {"target_modules": [OTHER]},
    f"on {LINEAR} and {OTHERS}": {"target_modules": [LINEAR, OTHER]},
    "with a regular expression as target": {"target_modules": rf".*\.1\..*{LINEAR}"},
    "with exclude_modules": {"target_modules": "all-linear", "exclude_modules": r".*mlp.*"},
    "with layers_to_transform": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "with rank_pattern and alpha_pattern": {
        "target_modules": "all-linear", "rank_pattern": {LINEAR: 2}, "alpha_pattern": {OTHER: 9}
    },
    "rsLoRA": {"use_rslora": True},
    "with lora_bias": {"lora_bias": True, "target_modules": [LINEAR, OTHER]},
    "on embed_tokens": {"target_modules": ["embed_tokens"]},
    f"on embed_tokens and {LINEAR}": {"target_modules": ["embed_tokens", LINEAR]},
    "on a tied lm_head": {"target_modules": ["lm_head"]},
    "on embed_tokens and lm_head with ensure_weight_tying": {
        "target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True
    },
    "with modules_to_save=embed_tokens": {"modules_to_save": ["embed_tokens"]},
    "with modules_to_save=norm": {"modules_to_save": ["norm", "input_layernorm"]},
    f"with modules_to_save={OTHER}": {"modules_to_save": [OTHER.rpartition(".")[2]]},
    f"with modules_to_save={LINEAR}": {"target_modules": [OTHER], "modules_to_save": [LINEAR]},
    "with modules_to_save=mlp": {"modules_to_save": ["mlp"]},
    "with trainable_token_indices": {"trainable_token_indices": [5, 9, 70]},
    f"DoRA on {LINEAR}": {"use_dora": True},
    f"DoRA on {OTHERS}": {"use_dora": True, "target_modules": [OTHER]},
    "DoRA on embed_tokens": {"use_dora": True, "target_modules": ["embed_tokens"]},
    "KaSA": {"kasa_config": peft.tuners.lora.config.KasaConfig()},
    "block-diagonal": {
        "use_bdlora": peft.tuners.lora.config.BdLoraConfig(target_modules_bd_b=[LINEAR], nblocks=2),
    },
}  # fmt: skip
for name, options in OPTIONS.items():
    row(GROUP, name, four_bits=name in (f"on {LINEAR} and {OTHERS}", "with lora_bias", f"DoRA on {LINEAR}", "rsLoRA"))(
        partial(lambda place, options: check(place, lora(**options)), options=options)
    )
for name, options in {
    "on an untied lm_head": {"target_modules": ["lm_head"]},
    "with modules_to_save=lm_head": {"modules_to_save": ["lm_head"]},
    "with modules_to_save=lm_head and embed_tokens": {"modules_to_save": ["lm_head", "embed_tokens"]},
}.items():
    row(GROUP, name)(partial(lambda place, options: check(place, lora(**options), "untied"), options=options))

INITIAL = ["gaussian", "olora", "pissa", "pissa_niter_4", "orthogonal", "mica", False]
for initial in INITIAL:
    row(GROUP, f"init_lora_weights={initial}")(
        partial(
            lambda place, initial: initialised(place, lora(init_lora_weights=initial)),
            initial=initial,
        )
    )


def initialised(place: Place, config: peft.LoraConfig) -> Results:
    """Outputs as PEFT initialises the adapter; its random numbers are replaced, its decompositions kept."""
    kept = config.init_lora_weights in ("pissa", "olora", "mica")
    adapted = adapt(place.model(), config, None if kept else 0.1)
    return forward_and_backward(adapted) | {"few": logits(adapted, FEW), "generated": generated(adapted)}


@row(GROUP, "PiSSA saved as LoRA")
def pissa_as_lora(place: Place) -> Results:
    adapted = adapt(place.model(), lora(init_lora_weights="pissa"), std=None)
    adapted.peft_config["default"].init_lora_weights = True
    adapted.save_pretrained(place.folder / "initial")
    adapted.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for name, one in adapted.named_parameters():
            if "lora_B" in name:
                one.mul_(1.1)
    adapted.save_pretrained(
        place.folder / "adapter", path_initial_model_for_weight_conversion=str(place.folder / "initial")
    )
    loaded = peft.PeftModel.from_pretrained(place.model(), place.folder / "adapter").eval()
    return {"converted": logits(adapted), "loaded": logits(loaded)}


@row(GROUP, "LoftQ")
def loftq(place: Place) -> Results:
    config = lora(init_lora_weights="loftq", loftq_config=peft.LoftQConfig(loftq_bits=4))
    return forward_and_backward(adapt(place.model(), config, std=None))


def _batches() -> list[dict[str, Tensor]]:
    return [{"input_ids": BATCH, "attention_mask": torch.ones_like(BATCH), "labels": BATCH}]


def _changes(model: Any) -> Results:
    """What the adapter adds to each weight, whatever the signs and the order of its factors."""
    modules = [(name, one) for name, one in model.named_modules() if hasattr(one, "get_delta_weight")]
    return {name: one.get_delta_weight("default").detach() for name, one in modules if "default" in one.lora_A}


@row(GROUP, "EVA", tolerance=1e-3)
def eva(place: Place) -> Results:
    torch.manual_seed(0)
    config = lora(init_lora_weights="eva", eva_config=peft.EvaConfig(rho=1.0))
    adapted = peft.get_peft_model(place.model(), config)
    peft.initialize_lora_eva_weights(adapted, _batches() * 3, show_progress_bar=False)
    factors = {name: one for name, one in adapted.named_parameters() if "lora_A" in name}
    return {f"span of {name}": (one.T @ torch.linalg.pinv(one.T)).detach() for name, one in factors.items()}


@row(GROUP, "CorDA", tolerance=1e-3)
def corda(place: Place) -> Results:
    # It imports `dataclass` from the package attrs, which nothing else here needs.
    sys.modules.setdefault("attr", dataclasses)
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    model = place.model().requires_grad_(False)
    config = lora(init_lora_weights="corda", corda_config=CordaConfig(corda_method="kpm"), target_modules=[LINEAR])
    preprocess_corda(model, config, run_model=lambda: model(BATCH[:1]))  # it takes one text at a time
    adapted = adapt(model, config, std=None)
    return _changes(adapted) | {"logits": logits(adapted)}


@row(GROUP, "LoRA-GA", tolerance=1e-3)
def lora_ga(place: Place) -> Results:
    from peft.tuners.lora.loraga import preprocess_loraga

    model = place.model()
    config = lora(init_lora_weights="lora_ga", lora_ga_config=peft.LoraGAConfig(), target_modules=[LINEAR])
    preprocess_loraga(model, config, lambda: model(BATCH, labels=BATCH).loss.backward())
    adapted = adapt(model, config, std=None)
    # The signs of singular vectors are arbitrary, and A and B have different ones.
    return {name: one.detach().abs() for name, one in adapted.named_parameters() if "lora_" in name}


@row(GROUP, "aLoRA", four_bits=True)
def activated_lora(place: Place) -> Results:
    call = [int(one) for one in BATCH[0, 9:11]]
    ids = BATCH.clone()
    ids[1, 4:6] = torch.tensor(call)
    ids[2, 20:22] = torch.tensor(call)
    adapted = adapt(place.model(), lora(alora_invocation_tokens=call))
    results = forward_and_backward(adapted, ids)
    with adapted.disable_adapter():
        require_change(results["logits"], logits(adapted, ids))
    return results | {"generated": generated(adapted, ids)}


@row(GROUP, "QA-LoRA")
def qa_lora(place: Place) -> Results:
    return check(place, lora(use_qalora=True, qalora_group_size=8))


@row(GROUP, "VeLoRA")
def velora(place: Place) -> Results:
    config = lora(velora_config=peft.tuners.lora.config.VeloraConfig(num_groups=8))
    adapted = adapt(place.model(), config).train()
    return forward_and_backward(adapted, use_cache=False)


@row(GROUP, "MonteCLoRA")
def monteclora(place: Place) -> Results:
    adapted = adapt(
        place.model(), lora(monteclora_config=peft.tuners.lora.config.MontecloraConfig(num_samples=2)), 0.05
    )
    return forward_and_backward(adapted) | {"few": logits(adapted, FEW)}


@row(GROUP, "Arrow routing of adapters")
def arrow(place: Place) -> Results:
    for number in range(2):
        adapt(place.model(), lora(), std=0.1 + 0.1 * number).save_pretrained(place.folder / str(number))
    config = peft.ArrowConfig(top_k=1)
    paths = [str(place.folder / str(number)) for number in range(2)]
    adapted = peft.create_arrow_model(place.model(), paths, config).eval()
    return {"logits": logits(adapted), "few": logits(adapted, FEW)}


def dropped(place: Place, config: peft.LoraConfig) -> Results:
    """In training mode with the same seed: the layers get inputs of the same shapes in the same order."""
    adapted = adapt(place.model(), config).train()
    torch.manual_seed(3)
    results = forward_and_backward(adapted, use_cache=False)
    require_change(results["logits"], logits(adapted.eval()))
    return results


for name, options in {
    f"lora_dropout on {LINEAR}": {"lora_dropout": 0.5},
    f"lora_dropout on {LINEAR} and {OTHERS}": {"lora_dropout": 0.5, "target_modules": "all-linear"},
    "lora_dropout with DoRA": {"lora_dropout": 0.5, "use_dora": True},
}.items():
    row(GROUP, name)(partial(lambda place, options: dropped(place, lora(**options)), options=options))


@row(GROUP, "layer_replication")
def layer_replication(place: Place) -> Results:
    adapted = adapt(place.model(), lora(layer_replication=[[0, 2], [1, 2]]))
    return forward_and_backward(adapted, use_cache=False) | {"generated": generated(adapted, use_cache=False)}


EXPERTS: dict[str, dict[str, Any]] = {
    f"on {HERE.moas}": {"target_modules": [], "target_parameters": MOA},
    "on feed-forward experts": {"target_modules": [], "target_parameters": MOE},
    f"on all experts and {LINEAR}": {"target_parameters": [*MOA, *MOE]},
    f"on all experts, {LINEAR} and {OTHERS}": {
        "target_modules": [LINEAR, OTHER], "target_parameters": [*MOA, *MOE]
    },
    "on experts, rsLoRA": {"target_parameters": MOE, "use_rslora": True},
    "on experts with rank_pattern": {"target_parameters": MOE, "rank_pattern": {MOE[0]: 2}},
    "on experts with alpha_pattern": {"target_parameters": MOE, "alpha_pattern": {MOE[0]: 2}},
    "on one expert tensor": {"target_modules": [], "target_parameters": [MOE[1]]},
    "on weights of both kinds by one name": {"target_modules": [], "target_parameters": [MOE[0].partition(".")[2]]},
    "on experts with layers_to_transform": {
        "target_parameters": MOE, "layers_to_transform": [1], "layers_pattern": "layers"
    },
    "on the biases and norms by target_parameters": {
        "target_modules": [], "target_parameters": ["mlp.bias", "norm.weight"]
    },
    f"on {LINEAR} by target_parameters": {"target_modules": [], "target_parameters": [f"{LINEAR}.weight"]},
    f"on {OTHERS} by target_parameters": {"target_modules": [], "target_parameters": [f"{OTHER}.weight"]},
    "on experts with lora_dropout": {"target_parameters": MOE, "lora_dropout": 0.5},
    "on experts with DoRA": {"target_parameters": MOE, "use_dora": True},
    "on experts with lora_bias": {"target_parameters": MOE, "lora_bias": True},
    "on experts with PiSSA": {"target_parameters": MOE, "init_lora_weights": "pissa"},
    "on experts with modules_to_save=norm": {"target_parameters": MOE, "modules_to_save": ["norm"]},
}  # fmt: skip
for name, options in EXPERTS.items():
    row(GROUP, name, four_bits=name in (f"on all experts, {LINEAR} and {OTHERS}", "on experts, rsLoRA"))(
        partial(lambda place, options: check(place, lora(**options)), options=options)
    )


@row(GROUP, "on experts, all weights trained too")
def full_and_low_rank(place: Place) -> Results:
    adapted = adapt(place.model(), lora_on_all())
    adapted.requires_grad_(True)
    return forward_and_backward(adapted)


@row(GROUP, "on experts, with padding and position_ids", four_bits=True)
def padded(place: Place) -> Results:
    adapted = adapt(place.model(), lora_on_all())
    positions = (PADDED.cumsum(-1) - 1).clamp(min=0)
    labels = BATCH.masked_fill(PADDED == 0, -100)
    return forward_and_backward(adapted, labels=labels, attention_mask=PADDED, position_ids=positions) | {
        "generated": generated(adapted, BATCH, attention_mask=PADDED)
    }


@row(GROUP, "of a classifier with its head", four_bits=False)
def classifier(place: Place) -> Results:
    model = place.classifier()
    adapted = adapt(model, lora_on_all(task_type="SEQ_CLS"))
    results = forward_and_backward(adapted, labels=torch.tensor([0, 2, 1]), attention_mask=PADDED)
    adapted.save_pretrained(place.folder / "adapter")
    loaded = peft.PeftModel.from_pretrained(place.classifier(), place.folder / "adapter").eval()
    results["loaded"] = logits(loaded, attention_mask=PADDED)
    return results | attempt("merged", lambda: logits(adapted.merge_and_unload(), attention_mask=PADDED))


@row(GROUP, "as feature extraction", four_bits=False)
def feature_extraction(place: Place) -> Results:
    from transformers import AutoModel

    adapted = adapt(place.model(model_class=AutoModel), lora_on_all(task_type="FEATURE_EXTRACTION"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {"hidden": adapted(input_ids=BATCH).last_hidden_state}
