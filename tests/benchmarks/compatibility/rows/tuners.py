"""Every kind of tuner in PEFT, on the layers that it can wrap."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import peft
import torch

from tests.benchmarks.compatibility.names import LINEAR, OTHER
from tests.benchmarks.compatibility.place import (
    BATCH,
    FEW,
    PADDED,
    Place,
    Results,
    adapt,
    attempt,
    fill,
    forward_and_backward,
    generated,
    logits,
    require_change,
)
from tests.benchmarks.compatibility.registry import row

GROUP = "PEFT tuners"
# The base model's kind is untied, so that the head can be a target.
WRAPPERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "LoRA": (peft.LoraConfig, {"r": 4}),
    "DoRA": (peft.LoraConfig, {"r": 4, "use_dora": True}),
    "AdaLoRA": (peft.AdaLoraConfig, {"init_r": 4, "target_r": 2, "total_step": 10}),
    "AdaMSS": (peft.AdamssConfig, {"r": 4, "num_subspaces": 2}),
    "BOFT": (peft.BOFTConfig, {"boft_block_size": 4}),
    "C3A": (peft.C3AConfig, {"block_size": 4}),
    "DEFT": (peft.DeftConfig, {"r": 4}),
    "DeLoRA": (peft.DeloraConfig, {"r": 4}),
    "FourierFT": (peft.FourierFTConfig, {"n_frequency": 20}),
    "FRoD": (peft.FrodConfig, {"progressbar": False}),
    "GLoRA": (peft.GloraConfig, {"r": 4}),
    "GraLoRA": (peft.GraloraConfig, {"r": 4}),
    "HiRA": (peft.HiraConfig, {"r": 4}),
    "HRA": (peft.HRAConfig, {"r": 4}),
    "IA3": (peft.IA3Config, {"feedforward_modules": []}),
    "IA3 as feed-forward": (peft.IA3Config, {"feedforward_modules": "all"}),
    "Lily": (peft.LilyConfig, {"r": 4}),
    "LoHa": (peft.LoHaConfig, {"r": 4}),
    "LoKr": (peft.LoKrConfig, {"r": 4}),
    "MiSS": (peft.MissConfig, {"r": 4}),
    "OFT": (peft.OFTConfig, {"oft_block_size": 4}),
    "OSF": (peft.OSFConfig, {"effective_rank": 2}),
    "PEANuT": (peft.PeanutConfig, {"r": 4}),
    "Poly": (peft.PolyConfig, {"r": 4, "n_tasks": 2}),
    "PSOFT": (peft.PsoftConfig, {"r": 4}),
    "PVeRA": (peft.PveraConfig, {"r": 4}),
    "RandLoRA": (peft.RandLoraConfig, {"r": 4}),
    "RoAd": (peft.RoadConfig, {"group_size": 4}),
    "SHiRA": (peft.ShiraConfig, {"r": 1, "random_seed": 0}),
    "SuperTuning": (peft.SupertuningConfig, {"sparsity": 0.9}),
    "TinyLoRA": (peft.TinyLoraConfig, {"r": 2}),
    "Uni-LoRA": (peft.UniLoraConfig, {"r": 4}),
    "VB-LoRA": (peft.VBLoRAConfig, {"r": 4, "num_vectors": 8, "vector_length": 4, "save_only_topk_weights": False}),
    "VeRA": (peft.VeraConfig, {"r": 4}),
    "WaveFT": (peft.WaveFTConfig, {"n_frequency": 20}),
}
TARGETS: dict[str, Any] = {LINEAR: [LINEAR], "all-linear": "all-linear", "lm_head": ["lm_head"]}
# A basis of the whole spectrum, of which a little noise changes much.
STD = {"FourierFT": 3.0, "DeLoRA": 0.3}
# Its gradients are sums over many random bases that cancel each other.
TOLERANCES = {"RandLoRA": 1e-4}


def tuner(place: Place, kind: Any, options: dict[str, Any], targets: Any, std: float = 0.1) -> Results:
    """Forward, backward, a few tokens, greedy decoding, saved and loaded again, merged, and disabled."""
    options = dict(options)
    if options.get("feedforward_modules") == "all":
        targets = [LINEAR, OTHER] if targets == "all-linear" else targets
        options["feedforward_modules"] = targets
    config = kind(target_modules=targets, task_type="CAUSAL_LM", **options)
    inputs = {"task_ids": torch.zeros(3, dtype=torch.int64)} if kind is peft.PolyConfig else {}
    few = {"task_ids": torch.zeros(1, dtype=torch.int64)} if inputs else {}
    model = place.model("untied")
    before = logits(model)
    adapted = adapt(model, config, std)
    results = forward_and_backward(adapted, **inputs)
    require_change(before, results["logits"])
    results["few"] = logits(adapted, FEW, **few)
    results |= attempt("generated", lambda: generated(adapted, **few))

    def saved() -> torch.Tensor:
        adapted.save_pretrained(place.folder / "adapter")
        loaded = peft.PeftModel.from_pretrained(place.model("untied"), place.folder / "adapter").eval()
        return logits(loaded, **inputs)

    def disabled() -> torch.Tensor:
        with adapted.disable_adapter():
            return logits(adapted, **inputs)

    results |= attempt("loaded", saved)
    results |= attempt("disabled", disabled)
    results |= attempt("merged", lambda: logits(adapted.merge_and_unload()))
    return results


for name, (kind, options) in WRAPPERS.items():
    for where, targets in TARGETS.items():
        row(GROUP, f"{name} on {where}", tolerance=TOLERANCES.get(name, 1e-5))(
            partial(tuner, kind=kind, options=options, targets=targets, std=STD.get(name, 0.1))
        )


@row(GROUP, "LN tuning of all norms")
def layer_norms(place: Place) -> Results:
    return tuner(place, peft.LNTuningConfig, {}, ["input_layernorm", "post_attention_layernorm", "norm"])


@row(GROUP, "BEFT of biases")
def biases(place: Place) -> Results:
    return tuner(place, peft.BeftConfig, {}, [LINEAR])


@row(GROUP, "bias=all: trains the biases of the experts")
def bias_all(place: Place) -> Results:
    return tuner(place, peft.LoraConfig, {"r": 4, "bias": "all"}, [LINEAR])


@row(GROUP, "Trainable tokens")
def trainable_tokens(place: Place) -> Results:
    rows = sorted({int(one) for one in BATCH[0, :5]})
    adapted = adapt(
        place.model("untied"),
        peft.TrainableTokensConfig(token_indices=rows, target_modules=["embed_tokens"], task_type="CAUSAL_LM"),
    )
    results = forward_and_backward(adapted)
    adapted.save_pretrained(place.folder / "adapter")
    loaded = peft.PeftModel.from_pretrained(place.model("untied"), place.folder / "adapter").eval()
    return results | {"loaded": logits(loaded)} | attempt("merged", lambda: logits(adapted.merge_and_unload()))


@row(GROUP, "Trainable tokens with a tied head")
def trainable_tied_tokens(place: Place) -> Results:
    adapted = adapt(
        place.model(),
        peft.TrainableTokensConfig(token_indices=[5, 9, 70], target_modules=["embed_tokens"], task_type="CAUSAL_LM"),
    )
    return forward_and_backward(adapted) | {"generated": generated(adapted)}


def prompts(place: Place, config: peft.PeftConfig, classify: bool = False) -> Results:
    """Methods that learn a prompt: forward, backward, padded batches, decoding, and saved and loaded again."""
    load = place.classifier if classify else place.model
    adapted = adapt(load(), config)
    labels = torch.tensor([0, 2, 1]) if classify else BATCH
    inputs = {"task_ids": torch.zeros(3, dtype=torch.int64)} if config.peft_type == "MULTITASK_PROMPT_TUNING" else {}
    few = {"task_ids": torch.zeros(1, dtype=torch.int64)} if inputs else {}
    results = forward_and_backward(adapted, labels=labels, attention_mask=PADDED, **inputs)
    if not classify:
        results |= attempt("generated", lambda: generated(adapted, attention_mask=torch.ones_like(FEW), **few))

    def saved() -> torch.Tensor:
        adapted.save_pretrained(place.folder / "adapter")
        loaded = peft.PeftModel.from_pretrained(load(), place.folder / "adapter").eval()
        return logits(loaded, attention_mask=PADDED, **inputs)

    return results | attempt("loaded", saved)


# PEFT takes num_attention_heads of the configuration, which is top-k times that of key-value heads.
HEADS = {"num_layers": 2, "num_attention_heads": 2, "token_dim": 64, "num_transformer_submodules": 1}
PROMPTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "prompt tuning": (peft.PromptTuningConfig, {}),
    "multitask prompt tuning": (peft.MultitaskPromptTuningConfig, {"num_tasks": 2}),
    "P-tuning": (peft.PromptEncoderConfig, {"encoder_hidden_size": 16}),
    "P-tuning with an LSTM": (
        peft.PromptEncoderConfig,
        {"encoder_hidden_size": 16, "encoder_reparameterization_type": "LSTM"},
    ),
    "prefix tuning without a number of heads": (peft.PrefixTuningConfig, {}),
    "prefix tuning": (peft.PrefixTuningConfig, HEADS),
    "prefix tuning with a projection": (
        peft.PrefixTuningConfig,
        {"prefix_projection": True, "encoder_hidden_size": 16, **HEADS},
    ),
    "Cartridge": (peft.CartridgeConfig, HEADS),
}
for name, (kind, options) in PROMPTS.items():
    for classify in (False, True):
        made = partial(
            lambda place, kind, options, classify: prompts(
                place, kind(num_virtual_tokens=4, task_type="SEQ_CLS" if classify else "CAUSAL_LM", **options), classify
            ),
            kind=kind,
            options=options,
            classify=classify,
        )
        row(GROUP, f"{name}{' of a classifier' * classify}")(made)


@row(GROUP, "CPT")
def context_aware_prompt(place: Place) -> Results:
    ids = list(range(20, 28))
    config = peft.CPTConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=8,
        cpt_token_ids=ids,
        cpt_mask=[1] * 8,
        cpt_tokens_type_mask=[1, 2, 3, 4] * 2,
        opt_weighted_loss_type="decay",
        opt_loss_decay_factor=0.95,
        opt_projection_epsilon=0.2,
        opt_projection_format_epsilon=0.1,
    )
    adapted = adapt(place.model(), config, std=0.01)
    types = torch.ones_like(BATCH)
    types[:, 12:] = 4
    return forward_and_backward(adapted, attention_mask=torch.ones_like(BATCH), input_type_mask=types)


@row(GROUP, "Adaption prompt")
def adaption_prompt(place: Place) -> Results:
    return forward_and_backward(
        adapt(place.model(), peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=2, task_type="CAUSAL_LM"))
    )


@row(GROUP, "Shadow")
def shadow(place: Place) -> Results:
    adapted = adapt(
        place.model(), peft.ShadowConfig(r=4, shadow_dropout=0.0, shadow_num_hidden_layers=1, task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for _, parameter in adapted.named_parameters():
            parameter.nan_to_num_()
    return forward_and_backward(adapted)


@row(GROUP, "X-LoRA", tolerance=1e-4)
def x_lora(place: Place) -> Results:
    for number in range(2):
        one = adapt(
            place.model(), peft.LoraConfig(r=4, target_modules=[LINEAR], task_type="CAUSAL_LM"), std=0.1 + number
        )
        one.save_pretrained(place.folder / str(number))
    config = peft.XLoraConfig(
        task_type="CAUSAL_LM",
        hidden_size=64,
        xlora_depth=2,
        xlora_size=8,
        xlora_dropout_p=0.0,
        adapters={str(number): str(place.folder / str(number)) for number in range(2)},
    )
    model = place.model()
    model.config.use_cache = False
    adapted = adapt(model, config)
    results = forward_and_backward(adapted)
    return results | {"few": logits(adapted, FEW)} | attempt("generated", lambda: generated(adapted, use_cache=False))


@row(GROUP, "Poly with two tasks in a batch")
def poly_tasks(place: Place) -> Results:
    adapted = adapt(
        place.model(), peft.PolyConfig(target_modules=[LINEAR], r=4, n_tasks=2, n_skills=3, task_type="CAUSAL_LM")
    )
    return forward_and_backward(adapted, task_ids=torch.tensor([0, 1, 1]))


@row(GROUP, "mixed model of LoRA, LoHa and LoKr")
def mixed_model(place: Place) -> Results:
    model = place.model("untied")
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules=[LINEAR, "lm_head"]), adapter_name="lora", mixed=True
    )
    adapted.add_adapter("loha", peft.LoHaConfig(r=4, target_modules=[LINEAR]))
    adapted.add_adapter("lokr", peft.LoKrConfig(r=4, target_modules=[OTHER]))
    adapted.set_adapter(["lora", "loha", "lokr"])
    fill(adapted)
    adapted.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = forward_and_backward(adapted)
        adapted.set_adapter("lora")
        results["one"] = logits(adapted)
        adapted.set_adapter(["loha", "lokr"])
        results["two"] = logits(adapted)
        return results | attempt("merged", lambda: logits(adapted.merge_and_unload()))
