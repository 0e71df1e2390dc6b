"""The model itself: outputs, masks, gradients, embeddings, configurations, loading and saving, pipelines."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
)

from tests.benchmarks.compatibility.names import LINEAR
from tests.benchmarks.compatibility.place import (
    BATCH,
    FEW,
    PADDED,
    VOCABULARY,
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

GROUP = "Models"
POSITIONS = (PADDED.cumsum(-1) - 1).clamp(min=0)


def adapted_model(place: Place, **options) -> Any:
    return adapt(place.model(**options), lora_on_all())


@row(GROUP, "forward and backward of all weights")
def plain(place: Place) -> Results:
    return forward_and_backward(place.model()) | {"few": logits(place.model(), FEW)}


@row(GROUP, "forward and backward of all weights, training mode")
def training_mode(place: Place) -> Results:
    return forward_and_backward(place.model().train())


@row(GROUP, "untied head: forward and backward of all weights")
def untied(place: Place) -> Results:
    return forward_and_backward(place.model("untied"))


@row(GROUP, "bf16 weights: loss", tolerance=5e-3, four_bits=False)
def in_bf16(place: Place) -> Results:
    return {"loss": forward_and_backward(place.model(dtype=torch.bfloat16))["loss"]}


@row(GROUP, "fp16 weights: loss", tolerance=5e-3)
def in_fp16(place: Place) -> Results:
    return {"loss": forward_and_backward(place.model(dtype=torch.float16))["loss"]}


@row(GROUP, "fp64 weights")
def in_fp64(place: Place) -> Results:
    return forward_and_backward(place.model(dtype=torch.float64))


@row(GROUP, "hidden states and attentions", four_bits=True)
def outputs(place: Place) -> Results:
    output = adapted_model(place, attn_implementation="eager")(
        BATCH, attention_mask=PADDED, output_hidden_states=True, output_attentions=True
    )
    results: Results = {"logits": output.logits}
    for key in ("hidden_states", "attentions"):
        results |= {f"{key} {i}": one for i, one in enumerate(getattr(output, key))}
    return results


@row(GROUP, "gradients of hidden states and attentions by retain_grad")
def retained(place: Place) -> Results:
    model = place.model(attn_implementation="eager")
    output = model(BATCH, labels=BATCH, output_hidden_states=True, output_attentions=True)
    kept = {}
    for key in ("hidden_states", "attentions"):
        for i, one in enumerate(getattr(output, key)):
            one.retain_grad()
            kept[f"{key} {i}"] = one
    output.loss.backward()
    # No gradient is as telling as a wrong one.
    return {name: torch.zeros(()) if one.grad is None else one.grad for name, one in kept.items()}


@row(GROUP, "attentions from a model loaded with sdpa")
def sdpa_attentions(place: Place) -> Results:
    output = place.model(attn_implementation="sdpa")(BATCH, output_attentions=True)
    assert output.attentions and output.attentions[0] is not None, "sdpa returns no attentions"
    expected = place.model(attn_implementation="eager")(BATCH, output_attentions=True)
    return {"attentions": output.attentions[0], "attentions.expected": expected.attentions[0]}


@row(GROUP, "return_dict=False")
def as_tuple(place: Place) -> Results:
    output = place.model()(BATCH, labels=BATCH, return_dict=False, use_cache=False, output_hidden_states=True)
    return {"loss": output[0], "logits": output[1], "count": torch.tensor(len(output))}


@row(GROUP, "router_logits: stock has three in a layer, ours two")
def router_logits(place: Place) -> Results:
    """The feed-forward routers, which both return last."""
    output = place.model()(BATCH, output_router_logits=True)
    each = len(output.router_logits) // 2
    return {f"layer {i}": output.router_logits[(i + 1) * each - 1].reshape(BATCH.numel(), -1) for i in (1,)}


for implementation in ("eager", "sdpa", "flex_attention", "flash_attention_2"):

    def attention(place: Place, implementation: str) -> Results:
        model = adapted_model(place, attn_implementation=implementation)
        if implementation == "flex_attention":  # which has no backward pass on a CPU
            return {"logits": logits(model, attention_mask=PADDED) * PADDED.unsqueeze(-1)} | {
                "logits.expected": logits(adapted_model(place), attention_mask=PADDED) * PADDED.unsqueeze(-1)
            }
        results = forward_and_backward(model, attention_mask=PADDED, labels=BATCH.masked_fill(PADDED == 0, -100))
        expected = forward_and_backward(
            adapted_model(place), attention_mask=PADDED, labels=BATCH.masked_fill(PADDED == 0, -100)
        )
        # Rows of padding see nothing, and every implementation gives them something else.
        for made in (results, expected):
            made["logits"] = made["logits"] * PADDED.unsqueeze(-1)
        return results | {f"{name}.expected": one for name, one in expected.items()}

    row(GROUP, f"attn_implementation={implementation}, padded", tolerance=1e-4)(
        partial(attention, implementation=implementation)
    )


@row(GROUP, "set_attn_implementation")
def set_attention(place: Place) -> Results:
    model = place.model()
    model.set_attn_implementation("eager")
    return {"logits": logits(model), "attentions": model(BATCH, output_attentions=True).attentions[0]}


@row(GROUP, "an attention function of one's own, registered")
def own_attention(place: Place) -> Results:
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    called = []

    def halved(module, query, key, value, mask, **kwargs):
        called.append(1)
        output, weights = sdpa_attention_forward(module, query, key, value, mask, **kwargs)
        return output * 0.5, weights

    AttentionInterface.register("halved", halved)
    model = place.model()
    before = logits(model)
    model.set_attn_implementation("halved")
    results = {"logits": logits(model), "few": logits(model, FEW), "calls": torch.tensor(len(called))}
    require_change(before, results["logits"])
    return results


@row(GROUP, "4-D mask", four_bits=True)
def four_dimensional_mask(place: Place) -> Results:
    mask = torch.ones(3, 1, 24, 24, dtype=torch.bool).tril()
    mask[:, :, 12:, 3:6] = False
    additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    model = adapted_model(place)
    return forward_and_backward(model, attention_mask=additive) | attempt(
        "bool", lambda: logits(model, attention_mask=mask)
    )


@row(GROUP, "padding on the right and on the left")
def padding(place: Place) -> Results:
    model = place.model()
    right, left = PADDED.flip(1), PADDED
    return {
        "right": logits(model, attention_mask=right) * right.unsqueeze(-1),
        "left": logits(model, attention_mask=left, position_ids=POSITIONS) * left.unsqueeze(-1),
    }


@row(GROUP, "packed examples by position_ids", four_bits=True)
def packed(place: Place) -> Results:
    positions = torch.cat([torch.arange(length) for length in (5, 12, 7)]).repeat(3, 1)
    return forward_and_backward(adapted_model(place), position_ids=positions, use_cache=False)


@row(GROUP, "logits_to_keep")
def logits_to_keep(place: Place) -> Results:
    model = place.model()
    return {"last": logits(model, logits_to_keep=2), "chosen": logits(model, logits_to_keep=torch.tensor([3, 9]))}


@row(GROUP, "labels with ignored positions, num_items_in_batch, shift_labels")
def labels(place: Place) -> Results:
    model = adapted_model(place)
    ignored = BATCH.masked_fill(torch.arange(24) < 7, -100)
    results = {"ignored": model(BATCH, labels=ignored).loss}
    results["count"] = model(BATCH, labels=ignored, num_items_in_batch=torch.tensor(100)).loss
    shifted = torch.nn.functional.pad(BATCH[:, 1:], (0, 1), value=-100)
    results["shifted"] = model(BATCH, labels=BATCH, shift_labels=shifted).loss
    results["none"] = model(BATCH, labels=torch.full_like(BATCH, -100)).loss.nan_to_num(7)
    return results


@row(GROUP, "inputs_embeds and their gradients", four_bits=True)
def inputs_embeds(place: Place) -> Results:
    model = adapted_model(place)
    embedded = model.get_input_embeddings()(BATCH).detach().requires_grad_()
    output = model(inputs_embeds=embedded, labels=BATCH)
    output.loss.backward()
    return {"logits": output.logits, "gradient": embedded.grad, "loss": output.loss}


@row(GROUP, "enable_input_require_grads")
def input_grads(place: Place) -> Results:
    model = place.model().requires_grad_(False)
    model.enable_input_require_grads()
    output = model(BATCH, output_hidden_states=True)
    (gradient,) = torch.autograd.grad(output.logits.square().mean(), output.hidden_states[0])
    return {"gradient": gradient}


@row(GROUP, "gradient checkpointing: gradients of all weights")
def checkpointing(place: Place) -> Results:
    expected = forward_and_backward(place.model())
    model = place.model().train()
    model.gradient_checkpointing_enable()
    results = forward_and_backward(model, use_cache=False)
    model.gradient_checkpointing_disable()
    return results | {f"{name}.expected": one for name, one in expected.items()}


@row(GROUP, "resize_token_embeddings", four_bits=True)
def resize(place: Place) -> Results:
    model = place.model()
    model.resize_token_embeddings(VOCABULARY + 8, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[VOCABULARY:] = 0.1
    results = {"logits": logits(model), "generated": generated(model), "head": model.get_output_embeddings().weight}
    results["size"] = torch.tensor(model.config.vocab_size)
    model.resize_token_embeddings(VOCABULARY - 20)
    return results | {"smaller": logits(model), "loss": model(BATCH, labels=BATCH).loss}


@row(GROUP, "resize_token_embeddings, untied, to a multiple")
def resize_untied(place: Place) -> Results:
    model = place.model("untied")
    model.resize_token_embeddings(VOCABULARY + 8, pad_to_multiple_of=64, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[VOCABULARY:] = 0.1
        model.get_output_embeddings().weight[VOCABULARY:] = 0.2
    model.save_pretrained(place.folder / "model")
    loaded = AutoModelForCausalLM.from_pretrained(place.folder / "model").eval()
    return {"logits": logits(model), "loaded": logits(loaded)}


@row(GROUP, "set_input_embeddings and set_output_embeddings")
def set_embeddings(place: Place) -> Results:
    model = place.model("untied")
    head = model.get_output_embeddings().weight.detach().clone()
    model.set_input_embeddings(torch.nn.Embedding.from_pretrained(head))
    model.set_output_embeddings(torch.nn.Linear(64, VOCABULARY, bias=True))
    with torch.no_grad():
        model.lm_head.weight.fill_(0.01)
        model.lm_head.bias.copy_(torch.arange(VOCABULARY) / 100)
    return {"logits": logits(model), "few": logits(model, FEW), "generated": generated(model)}


@row(GROUP, "lm_head replaced by Identity")
def identity_head(place: Place) -> Results:
    model = place.model("untied")
    model.lm_head = torch.nn.Identity()
    return {"logits": logits(model), "few": logits(model, FEW)}


@row(GROUP, "tied weights: one tensor, also after load_state_dict")
def tied(place: Place) -> Results:
    model = place.model()
    same = [model.lm_head.weight is model.model.embed_tokens.weight]
    model.load_state_dict({name: one * 1.5 for name, one in model.state_dict().items()})
    same.append(model.lm_head.weight is model.model.embed_tokens.weight)
    return {"same": torch.tensor(same), "logits": logits(model)}


@row(GROUP, "names and shapes of state_dict, parameters and buffers")
def names(place: Place) -> Results:
    model = place.model()
    shapes = {f"state.{name}": torch.tensor(one.shape) for name, one in model.state_dict().items()}
    return shapes | {f"parameter.{name}": torch.tensor(one.shape) for name, one in model.named_parameters()}


@row(GROUP, "names of modules")
def modules(place: Place) -> Results:
    """Stock's rotary embedding is a module; ours has no state and is a function."""
    skipped = ("rotary_emb", "activation")
    return {name or "root": torch.tensor(1) for name, _ in place.model().named_modules() if not name.endswith(skipped)}


@row(GROUP, "num_parameters, get_memory_footprint, get_input_embeddings, base_model, device, dtype")
def accessors(place: Place) -> Results:
    model = place.model()
    return {
        "parameters": torch.tensor(model.num_parameters()),
        "trainable": torch.tensor(model.num_parameters(only_trainable=True, exclude_embeddings=True)),
        "footprint": torch.tensor(model.get_memory_footprint(return_buffers=False)),
        "dtype": torch.tensor(model.dtype.itemsize),
        "base": torch.tensor(model.base_model is model.model),
        "decoder": torch.tensor(model.get_decoder() is model.model),
        "generates": torch.tensor(model.can_generate()),
    }


@row(GROUP, "legacy field names in config.json")
def legacy_fields(place: Place) -> Results:
    import shutil

    path = place.folder / "model"
    shutil.copytree(place.path(), path)
    stored = json.loads((path / "config.json").read_text())
    for old, new in {
        "ffn_hidden_size": "intermediate_size",
        "moe_num_experts": "num_local_experts",
        "moe_top_k": "num_experts_per_tok",
    }.items():
        stored[old] = stored.pop(new)
    (path / "config.json").write_text(json.dumps(stored))
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return {"logits": logits(model), "logits.expected": logits(place.model())}


@row(GROUP, "skip_logits: the loss without the logits")
def skip_logits(place: Place) -> Results:
    """Of ours alone: the loss, its gradients, `shift_labels`, a bias and an adapter on the head."""
    assert place.ours, "stock has no skip_logits"
    results: Results = {}
    for name, config in {"all": lora_on_all(), "head": lora(target_modules=["lm_head", LINEAR])}.items():
        made = []
        for skip in ({}, {"skip_logits": True}):
            adapted = adapt(place.model("untied"), config)
            output = adapted(BATCH, labels=BATCH, **skip)
            output.loss.backward()
            grads = {n: p.grad for n, p in adapted.named_parameters() if p.grad is not None}
            made.append({"loss": output.loss.detach(), **grads})
        results |= {f"{name}.{key}.expected": one for key, one in made[0].items()}
        results |= {f"{name}.{key}": one for key, one in made[1].items()}
    model = place.model("untied")
    shifted = torch.nn.functional.pad(BATCH[:, 2:], (0, 2), value=-100)
    for key, options in {
        "shift_labels": {"labels": BATCH, "shift_labels": shifted},
        "count": {"labels": BATCH, "num_items_in_batch": torch.tensor(50)},
    }.items():
        results[f"{key}.expected"] = model(BATCH, **options).loss
        results[key] = model(BATCH, skip_logits=True, **options).loss
    model.lm_head.bias = torch.nn.Parameter(torch.arange(VOCABULARY) / 100)
    results["bias.expected"] = model(BATCH, labels=BATCH).loss
    results["bias"] = model(BATCH, labels=BATCH, skip_logits=True).loss
    return results
