"""How the model is run: precision, modes of autograd, hooks, compilers, export, quantizers."""

from __future__ import annotations

import copy
from collections import Counter
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

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
    gradients,
    logits,
    lora,
    lora_on_all,
    require_change,
)
from tests.benchmarks.compatibility.registry import row

GROUP = "Execution"
# Of single bf16 products. Stock's router logits are rounded too, so single tokens take other experts: losses only.
AUTOCAST = 3e-2


def adapted_model(place: Place, kind: str = "tied", **options) -> Any:
    return adapt(place.model(kind, **options), lora_on_all())


for dtype in (torch.bfloat16, torch.float16):
    for full in (False, True):

        def autocast(place: Place, dtype: torch.dtype, full: bool) -> Results:
            model = place.model() if full else adapted_model(place)
            with torch.autocast("cpu", dtype=dtype):
                loss = model(BATCH, labels=BATCH).loss
            loss.backward()
            grads = gradients(model)
            assert all(one.isfinite().all() for one in grads.values())
            sizes = {f"size of {name}": torch.tensor(one.element_size()) for name, one in grads.items()}
            return {"loss": loss.detach()} | sizes

        name = f"autocast to {str(dtype).removeprefix('torch.')}{', all weights' * full}"
        row(GROUP, name, tolerance=AUTOCAST, four_bits=not full and dtype is torch.bfloat16)(
            partial(autocast, dtype=dtype, full=full)
        )


@row(GROUP, "autocast: dtypes of outputs", four_bits=True)
def autocast_dtypes(place: Place) -> Results:
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        output = adapted_model(place)(BATCH, output_hidden_states=True)
    return {
        "logits": torch.tensor(output.logits.element_size()),
        "hidden": torch.tensor(output.hidden_states[1].element_size()),
    }


@row(GROUP, "autocast: few tokens, then the same model in fp32", four_bits=True)
def autocast_then_fp32(place: Place) -> Results:
    model = adapted_model(place)
    before = logits(model, FEW)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits(model, FEW)
    return {"before": before, "after": logits(model, FEW)}


@row(GROUP, "autocast: router logits stay in fp32", four_bits=True)
def autocast_routers(place: Place) -> Results:
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        made = adapted_model(place)(BATCH, output_router_logits=True).router_logits
    rounded = all(bool((one.bfloat16().float() == one.float()).all()) for one in made)
    assert not rounded, "router logits are rounded to bf16, which breaks the slot sets of tied routers"
    return {"fp32": torch.tensor(made[0].element_size()), "fp32.expected": torch.tensor(4)}


@row(GROUP, "inference_mode", four_bits=True)
def inference_mode(place: Place) -> Results:
    model = adapted_model(place)
    with torch.inference_mode():
        results = {
            "batch": model(BATCH).logits.clone(),
            "few": model(FEW).logits.clone(),
            "generated": generated(model).clone(),
        }
    results = {name: one.clone() for name, one in results.items()}
    return results | forward_and_backward(model) | {"few again": logits(model, FEW)}


@row(GROUP, "model loaded under inference_mode")
def loaded_in_inference_mode(place: Place) -> Results:
    with torch.inference_mode():
        model = place.model(dtype=torch.float32)
        results = {"batch": model(BATCH).logits.clone(), "few": model(FEW).logits.clone()}
    return {name: one.clone() for name, one in results.items()}


@row(GROUP, "gradients of gradients")
def double_backward(place: Place) -> Results:
    model = adapted_model(place, attn_implementation="eager")
    factors = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    loss = model(BATCH, labels=BATCH).loss
    grads = torch.autograd.grad(loss, [one for _, one in factors], create_graph=True)
    sum(one.square().sum() for one in grads).backward()
    return {name: one.grad for name, one in factors}


@row(GROUP, "torch.func.functional_call and grad")
def functional(place: Place) -> Results:
    model = place.model()
    parameters = {name: one.detach() for name, one in model.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, parameters, (), {"input_ids": BATCH, "labels": BATCH}).loss

    return {"loss": loss(parameters)} | attempt("grad", lambda: torch.func.grad(loss)(parameters))


@row(GROUP, "torch.autograd.functional.jvp by forward mode")
def forward_mode(place: Place) -> Results:
    import torch.autograd.forward_ad as forward_ad

    model = place.model(attn_implementation="eager")
    embedded = model.get_input_embeddings()(BATCH).detach()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(embedded, torch.ones_like(embedded))
        return {"tangent": forward_ad.unpack_dual(model(inputs_embeds=dual).logits).tangent}


@row(GROUP, "vmap over adapters' inputs")
def vmapped(place: Place) -> Results:
    model = place.model()
    return {"logits": torch.func.vmap(lambda ids: model(ids.unsqueeze(0), use_cache=False).logits)(BATCH)}


@row(GROUP, "frozen parts: gradients of the head alone")
def head_alone(place: Place) -> Results:
    model = place.model("untied").requires_grad_(False)
    model.lm_head.requires_grad_(True)
    return forward_and_backward(model)


for part in ("kv_proj", "router", "input_linear", "norm", "embed_tokens", "bias"):

    def part_alone(place: Place, part: str) -> Results:
        model = place.model("untied")
        for name, one in model.named_parameters():
            one.requires_grad_(part in name)
        results = forward_and_backward(model)
        assert any(name.startswith("grad.") for name in results)
        return results

    row(GROUP, f"frozen parts: gradients of {part} alone")(partial(part_alone, part=part))

HOOKED = {
    "kv_proj": "model.layers.0.self_attention.kv_proj",
    "attention router": "model.layers.0.self_attention.experts.router",
    "attention router's layer": "model.layers.0.self_attention.experts.router.layer",
    "feed-forward router": "model.layers.0.mlp.router",
    "feed-forward router's layer": "model.layers.0.mlp.router.layer",
    "attention experts' input_linear": "model.layers.0.self_attention.experts.input_linear",
    "attention experts' output_linear": "model.layers.0.self_attention.experts.output_linear",
    "feed-forward experts' input_linear": "model.layers.0.mlp.input_linear",
    "feed-forward experts' output_linear": "model.layers.0.mlp.output_linear",
    "feed-forward layer": "model.layers.0.mlp",
    "self_attention": "model.layers.0.self_attention",
    "decoder layer": "model.layers.0",
    "input_layernorm": "model.layers.0.input_layernorm",
    "final norm": "model.norm",
    "embed_tokens": "model.embed_tokens",
    "lm_head": "lm_head",
    "decoder": "model",
}


def hooks(place: Place, name: str) -> Results:
    """How often hooks fire for a batch, for a few tokens and in the backward pass, and the first tensor they see."""
    model = place.model("untied")
    module = model.get_submodule(name)
    counts: Counter[str] = Counter()
    seen: dict[str, Tensor] = {}

    def keep(key: str, values: Any) -> None:
        counts[key] += 1
        values = values if isinstance(values, tuple) else (values,)
        tensor = next((one for one in values if isinstance(one, Tensor) and one.is_floating_point()), None)
        if tensor is not None:
            seen.setdefault(key, tensor.detach().clone())

    handles = [
        module.register_forward_pre_hook(lambda module, args: keep("input", args)),
        module.register_forward_hook(lambda module, args, output: keep("output", output)),
        module.register_full_backward_hook(lambda module, before, after: keep("gradient", after)),
    ]
    model(BATCH, labels=BATCH).loss.backward()
    logits(model, FEW)
    for handle in handles:
        handle.remove()
    results: Results = {f"calls of {key}": torch.tensor(counts[key]) for key in ("input", "output", "gradient")}
    if name.endswith(("kv_proj", "layer", "norm", "layernorm", "embed_tokens", "lm_head")):
        results |= {key: one.flatten(0, -2) for key, one in seen.items() if one.ndim > 1}
    return results


for label, name in HOOKED.items():
    row(GROUP, f"hooks on {label}")(partial(hooks, name=name))

for label in (
    "kv_proj",
    "attention router's layer",
    "feed-forward router's layer",
    "feed-forward layer",
    "decoder layer",
    "lm_head",
):

    def changing_hook(place: Place, name: str) -> Results:
        """A hook that halves an output: for steering, for scaling, and for taking a part out."""
        model = place.model("untied")
        before, few = logits(model), logits(model, FEW)

        def halve(module, args, output):
            return (output[0] * 0.5, *output[1:]) if isinstance(output, tuple) else output * 0.5

        handle = model.get_submodule(name).register_forward_hook(halve)
        results = forward_and_backward(model) | {"few": logits(model, FEW), "generated": generated(model)}
        require_change(before, results["logits"])
        require_change(few, results["few"])
        handle.remove()
        return results | {"removed": logits(model, FEW)}

    row(GROUP, f"a hook that changes the output of {label}", four_bits=False)(
        partial(changing_hook, name=HOOKED[label])
    )


@row(GROUP, "a module's forward replaced: kv_proj", four_bits=False)
def replaced_forward(place: Place) -> Results:
    model = place.model("untied")
    before = logits(model)
    layer = model.model.layers[0].self_attention.kv_proj
    forward = layer.forward
    layer.forward = lambda rows: forward(rows) * 0.5
    results = {"logits": logits(model), "few": logits(model, FEW)}
    require_change(before, results["logits"])
    return results


class Scaled(torch.nn.Linear):
    def forward(self, rows: Tensor) -> Tensor:
        return super().forward(rows) * 0.5


for label in ("kv_proj", "feed-forward router's layer", "lm_head"):

    def replaced_module(place: Place, name: str) -> Results:
        """By a subclass of Linear, as quantizers and others do."""
        model = place.model("untied")
        old = model.get_submodule(name)
        new = Scaled(old.in_features, old.out_features, bias=False)
        new.weight = old.weight
        model.set_submodule(name, new)
        return forward_and_backward(model) | {"few": logits(model, FEW)}

    row(GROUP, f"a module replaced by a subclass of Linear: {label}")(partial(replaced_module, name=HOOKED[label]))


@row(GROUP, "parametrizations: weight norm on kv_proj")
def parametrized(place: Place) -> Results:
    model = place.model("untied")
    torch.manual_seed(0)
    torch.nn.utils.parametrizations.weight_norm(model.model.layers[0].self_attention.kv_proj)
    with torch.no_grad():
        model.model.layers[0].self_attention.kv_proj.parametrizations.weight.original0.mul_(0.5)
    return forward_and_backward(model) | {"few": logits(model, FEW)}


@row(GROUP, "pruning of kv_proj by torch.nn.utils.prune")
def pruned(place: Place) -> Results:
    from torch.nn.utils import prune

    model = place.model("untied")
    prune.l1_unstructured(model.model.layers[0].self_attention.kv_proj, "weight", amount=0.5)
    prune.l1_unstructured(model.model.layers[0].mlp.router.layer, "weight", amount=0.5)
    return forward_and_backward(model) | {"few": logits(model, FEW)}


@row(GROUP, "a bias added to kv_proj and to a router")
def added_bias(place: Place) -> Results:
    model = place.model("untied")
    layer = model.model.layers[0]
    layer.self_attention.kv_proj.bias = torch.nn.Parameter(torch.arange(128) / 100)
    layer.mlp.router.layer.bias = torch.nn.Parameter(torch.arange(4) / 2)
    return forward_and_backward(model) | {"few": logits(model, FEW)}


@row(GROUP, "layers removed, repeated and reordered")
def changed_layers(place: Place) -> Results:
    model = place.model()
    layers = model.model.layers
    results = {}
    for name, order in {"reversed": [1, 0], "repeated": [0, 1, 1], "first": [0]}.items():
        model.model.layers = torch.nn.ModuleList([layers[i] for i in order])
        model.config.num_hidden_layers = len(order)
        results[name] = logits(model, use_cache=False)
    return results


@row(GROUP, "weights changed in place through .data", four_bits=False)
def changed_weights(place: Place) -> Results:
    model = place.model()
    results = {"before": logits(model, FEW)}
    for one in model.parameters():
        one.data.mul_(1.1)
    return results | {"after": logits(model, FEW), "batch": logits(model)}


@row(GROUP, "torch.ao dynamic quantization of linear layers", tolerance=3e-2)
def quantize_dynamic(place: Place) -> Results:
    model = torch.ao.quantization.quantize_dynamic(place.model("untied"), {torch.nn.Linear}, dtype=torch.qint8)
    return {"logits": logits(model), "few": logits(model, FEW)}


@row(GROUP, "BitsAndBytesConfig(load_in_8bit)")
def eight_bits(place: Place) -> Results:
    model = AutoModelForCausalLM.from_pretrained(
        place.path(), quantization_config=BitsAndBytesConfig(load_in_8bit=True)
    )
    return {"shape": torch.tensor(logits(model.eval()).shape)}


@row(GROUP, "BitsAndBytesConfig(load_in_4bit)")
def four_bits(place: Place) -> Results:
    """Stock leaves the experts in 16 bits, so the values differ by design."""
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(place.path(), quantization_config=config, dtype=torch.float32).eval()
    adapted = adapt(model, lora())
    results = forward_and_backward(adapted)
    return {"shape": torch.tensor(results["logits"].shape), "finite": results["loss"].isfinite()}


for name, make in {
    "QuantoConfig": "QuantoConfig(weights='int8')",
    "TorchAoConfig": "TorchAoConfig('int8_weight_only')",
    "HqqConfig": "HqqConfig(nbits=4)",
    "FineGrainedFP8Config": "FineGrainedFP8Config()",
}.items():

    def other_quantizer(place: Place, make: str) -> Results:
        import transformers

        config = eval(f"transformers.{make}", {"transformers": transformers})
        model = AutoModelForCausalLM.from_pretrained(place.path(), quantization_config=config)
        return {"shape": torch.tensor(logits(model.eval()).shape)}

    row(GROUP, name)(partial(other_quantizer, make=make))


def compiled(place: Place, adapter: bool = True, train: bool = False, ids: Tensor = BATCH, **options) -> Results:
    torch._dynamo.reset()
    # One layer, because compilers take seconds for each.
    model = adapted_model(place, "shallow") if adapter else place.model("shallow")
    made = torch.compile(model, **options)
    if train:
        expected = forward_and_backward(model, ids)
        model.zero_grad()
        output = made(input_ids=ids, labels=ids)
        output.loss.backward()
        results = {"loss": output.loss.detach(), "logits": output.logits.detach()} | gradients(model)
        return results | {f"{name}.expected": one for name, one in expected.items()}
    with torch.no_grad():
        results = {"logits": made(input_ids=ids).logits.clone()}
    return results | {"logits.expected": logits(model, ids)}


# Traced, and run without Inductor, whose code takes most of the time to make.
TRACED: dict[str, Any] = {"backend": "aot_eager"}
COMPILED: dict[str, dict[str, Any]] = {
    "a batch": {**TRACED, "adapter": False},
    "a batch, LoRA": TRACED,
    "a few tokens, LoRA": {**TRACED, "ids": FEW},
    "fullgraph": {**TRACED, "adapter": False, "fullgraph": True},
    "fullgraph, LoRA": {**TRACED, "fullgraph": True},
    "fullgraph, a few tokens, LoRA": {**TRACED, "fullgraph": True, "ids": FEW},
    "dynamic, LoRA": {**TRACED, "dynamic": True},
    "forward and backward of all weights": {**TRACED, "adapter": False, "train": True},
    "forward and backward, LoRA": {**TRACED, "train": True},
    "Inductor, a batch, LoRA": {},
    "Inductor, a few tokens, LoRA": {"ids": FEW},
    "Inductor, forward and backward, LoRA": {"train": True},
}
for name, options in COMPILED.items():
    bits = name in ("a batch, LoRA", "fullgraph, a few tokens, LoRA")
    row(GROUP, f"torch.compile, {name}", tolerance=1e-4, four_bits=bits)(
        partial(lambda place, options: compiled(place, **options), options=options)
    )


@row(GROUP, "torch.compile before any eager pass, then moved adapters", tolerance=1e-4, four_bits=True)
def compiled_then_changed(place: Place) -> Results:
    """What the graph holds of the adapter must follow it: steps, scales, disabling, another adapter."""
    model = adapted_model(place, "shallow")
    model.add_adapter("two", lora_on_all())
    model.set_adapter("two")
    fill(model, 0.15, "two")
    model.set_adapter("default")
    made = torch.compile(model.eval(), **TRACED)
    results: Results = {}

    @torch.no_grad()
    def ask(name: str) -> None:
        results[name] = made(input_ids=FEW).logits.clone()
        results[f"{name}.expected"] = logits(model, FEW)

    ask("first")
    with torch.no_grad():
        for key, one in model.named_parameters():
            if ".default" in key and "lora_B" in key:
                one.mul_(1.5)
    ask("scaled in place")
    for key, one in model.named_parameters():
        if ".default" in key and "lora_B" in key:
            one.data = one.data * 1.5
    ask("replaced through .data")
    model.set_adapter("two")
    ask("another adapter")
    with model.disable_adapter():
        ask("disabled")
    ask("enabled again")
    model.merge_adapter()
    ask("merged")
    model.unmerge_adapter()
    ask("unmerged")
    return results


@row(GROUP, "torch.compile, disable_adapter from the first call", tolerance=1e-4)
def compiled_disabled(place: Place) -> Results:
    model = adapted_model(place, "shallow")
    made = torch.compile(model, **TRACED)
    results: Results = {}
    with torch.no_grad():
        with model.disable_adapter():
            results["disabled"] = made(input_ids=FEW).logits.clone()
        results["enabled"] = made(input_ids=FEW).logits.clone()
    with model.disable_adapter():
        results["disabled.expected"] = logits(model, FEW)
    return results | {"enabled.expected": logits(model, FEW)}


@row(GROUP, "torch.compile, trained in the graph for three steps", tolerance=1e-4, four_bits=True)
def compiled_training(place: Place) -> Results:
    results: Results = {}
    for compile_it in (False, True):
        model = adapted_model(place, "shallow").train()
        made = torch.compile(model, **TRACED) if compile_it else model
        optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
        losses = []
        for _ in range(3):
            loss = made(input_ids=BATCH, labels=BATCH, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        results["losses" if compile_it else "losses.expected"] = torch.stack(losses)
        if compile_it:
            results["few"] = logits(model.eval(), FEW)
        else:
            results["few.expected"] = logits(model.eval(), FEW)
    return results


for name, config in {
    "DoRA": lora(use_dora=True),
    "lora_bias": lora(lora_bias=True),
    "routers": lora(target_modules=["router.layer"]),
}.items():

    def compiled_tuner(place: Place, config: Any) -> Results:
        model = adapt(place.model("shallow"), copy.deepcopy(config))
        with torch.no_grad():
            made = torch.compile(model, **TRACED)(input_ids=FEW).logits.clone()
        return {"logits": made, "logits.expected": logits(model, FEW)}

    row(GROUP, f"torch.compile, {name}", tolerance=1e-4)(partial(compiled_tuner, config=config))


@row(GROUP, "model.compile() of a module in place", tolerance=1e-4)
def compiled_in_place(place: Place) -> Results:
    model = adapted_model(place)
    expected = logits(model)
    for layer in model.get_base_model().model.layers:
        layer.compile(**TRACED)
    return {"logits": logits(model), "few": logits(model, FEW), "logits.expected": expected}


def exported(place: Place, strict: bool, dynamic: bool, adapter: bool) -> Results:
    model = (adapted_model(place, "shallow") if adapter else place.model("shallow")).requires_grad_(False)
    shapes = {"input_ids": {1: torch.export.Dim("length", min=4, max=64)}} if dynamic else None
    with torch.no_grad():
        program = torch.export.export(
            _LogitsOnly(model), (), {"input_ids": BATCH}, strict=strict, dynamic_shapes=shapes
        )
        made = program.module()(input_ids=BATCH)
        results = {"logits": made, "logits.expected": logits(model)}
        if dynamic:
            results |= {
                "longer": program.module()(input_ids=BATCH.repeat(1, 2)),
                "longer.expected": logits(model, BATCH.repeat(1, 2)),
            }
    return results


class _LogitsOnly(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, use_cache=False).logits


for strict in (False, True):
    for dynamic in (False, True):
        for adapter in (False, True):
            name = f"torch.export, strict={strict}{', dynamic length' * dynamic}{', LoRA' * adapter}"
            row(GROUP, name, tolerance=1e-4, four_bits=not strict and not dynamic)(
                partial(exported, strict=strict, dynamic=dynamic, adapter=adapter)
            )


@row(GROUP, "torch.export of a classifier", tolerance=1e-4)
def exported_classifier(place: Place) -> Results:
    model = place.classifier().requires_grad_(False)
    with torch.no_grad():
        program = torch.export.export(
            model, (), {"input_ids": BATCH, "attention_mask": PADDED, "use_cache": False}, strict=False
        )
        made = program.module()(input_ids=BATCH, attention_mask=PADDED, use_cache=False).logits
    return {"logits": made, "logits.expected": logits(model, attention_mask=PADDED)}


@row(GROUP, "torch.jit.trace", tolerance=1e-4)
def traced(place: Place) -> Results:
    model = place.model().requires_grad_(False)
    with torch.no_grad():
        made = torch.jit.trace(_LogitsOnly(model), (BATCH,), check_trace=False)(BATCH)
    return {"logits": made, "logits.expected": logits(model)}


@row(GROUP, "torch.onnx.export")
def onnx(place: Place) -> Results:
    import io

    torch.onnx.export(_LogitsOnly(place.model()), (BATCH,), io.BytesIO(), dynamo=True)
    return {"done": torch.ones(1)}


@row(GROUP, "accelerate: cpu_offload and dispatch_model")
def offloaded(place: Place) -> Results:
    from accelerate import cpu_offload

    model = adapt(place.model(), lora())
    expected = logits(model)
    cpu_offload(model, execution_device="cpu")
    return {"logits": logits(model), "few": logits(model, FEW), "logits.expected": expected}


@row(GROUP, "accelerate: disk_offload")
def on_disk(place: Place) -> Results:
    from accelerate import disk_offload

    model = place.model("untied")
    expected = logits(model)
    disk_offload(model, str(place.folder / "offload"), execution_device="cpu", offload_buffers=True)
    return {"logits": logits(model), "few": logits(model, FEW), "logits.expected": expected}


@row(GROUP, "two threads at once")
def threads(place: Place) -> Results:
    from concurrent.futures import ThreadPoolExecutor

    model = adapted_model(place)
    parts = [BATCH[:1], BATCH[1:2], BATCH[2:], FEW]
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda ids: logits(model, ids), parts))
    return {str(i): one for i, one in enumerate(made)} | {
        f"{i}.expected": logits(model, one) for i, one in enumerate(parts)
    }


@row(GROUP, "meta device: shapes")
def on_meta(place: Place) -> Results:
    config = place.model().config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {"shape": torch.tensor(model(BATCH.to("meta"), use_cache=False).logits.shape)}


@row(GROUP, "empty batch")
def empty(place: Place) -> Results:
    return {"shape": torch.tensor(logits(place.model(), BATCH[:0]).shape)}


@row(GROUP, "one token, and a text longer than max_position_embeddings")
def lengths(place: Place) -> Results:
    model = place.model()
    long = torch.randint(3, 250, (1, 600), generator=torch.Generator().manual_seed(6))
    return {"one": logits(model, BATCH[:, :1]), "long": logits(model, long)}


@row(GROUP, "prepare_inputs_for_generation of a cached step")
def prepared_inputs(place: Place) -> Results:
    model = place.model()
    with torch.no_grad():
        cache = model(BATCH).past_key_values
        ids = torch.cat([BATCH, BATCH[:, :1]], dim=1)
        mask = torch.ones_like(ids)
        made = model.prepare_inputs_for_generation(
            ids, past_key_values=cache, attention_mask=mask, use_cache=True, next_sequence_length=1
        )
        results = {name: one for name, one in made.items() if isinstance(one, Tensor)}
        return results | {"logits": model(**made).logits}


@row(GROUP, "the feed-forward layer called as a module")
def layer_forward(place: Place) -> Results:
    made = place.model().model.layers[0].mlp(torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0)))
    return {"output": (made[0] if isinstance(made, tuple) else made).detach()}
