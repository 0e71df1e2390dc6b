"""How the model is run: precision, modes of autograd, hooks, compilers, export, quantizers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests.benchmarks.compatibility.names import HERE
from tests.benchmarks.compatibility.place import (
    BATCH,
    FEW,
    Place,
    Results,
    adapt,
    attempt,
    forward_and_backward,
    generated,
    gradients,
    logits,
    lora,
    lora_on_all,
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


for part in HERE.parts:

    def part_alone(place: Place, part: str) -> Results:
        model = place.model("untied")
        for name, one in model.named_parameters():
            one.requires_grad_(part in name)
        results = forward_and_backward(model)
        assert any(name.startswith("grad.") for name in results)
        return results

    row(GROUP, f"frozen parts: gradients of {part} alone")(partial(part_alone, part=part))


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
    alone = [logits(model, ids) for ids in parts]
    same = [torch.allclose(one, other, atol=1e-4) for one, other in zip(made, alone, strict=True)]
    assert all(same), "two threads give other results than one"
    return {"equal": torch.tensor(same)}


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
