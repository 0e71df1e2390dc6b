"""The paths of a GPU, on CPU tensors: their results are those of plain weights, and their costs stay in a budget."""

from functools import partial

import peft
import pytest
import torch
from torch.nn import functional as F

from jetmoe import decode as decoding
from jetmoe.decode import compiled_step, step
from jetmoe.experts.assignments import Routing
from jetmoe.experts.products import dispatched_product
from jetmoe.lora import lora_config
from jetmoe.nf4 import cpu as nf4_cpu
from jetmoe.nf4.tensor import quantize
from tests.builders.decoding import decode
from tests.builders.four_bits import assert_rounded, dequantized, four_bit_toy
from tests.builders.gpu_paths import AMPERE, HOPPER, TURING, cost_of_layer, take_gpu_paths
from tests.builders.toy_model import toy_model

WEIGHTS = ["16-bit", "nf4", "double nf4"]
FAMILIES = ["jetmoe", "olmoe"]
IDS = torch.randint(3, 99, (2, 20), generator=torch.Generator().manual_seed(0))
FEW = IDS[:1, :3]
SIZES = {"hidden_size": 64, "intermediate_size": 64, "kv_channels": 32, "initializer_range": 0.1}


def toy_in(folder, weights, family="jetmoe", dtype=torch.bfloat16, **changes):
    """A toy in which every expert is selected, so that no rounding selects another."""
    changes = {**SIZES, "family": family, "num_experts_per_tok": 4, **changes}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nf4_cpu, "supported", lambda: False)
        if weights == "16-bit":
            return toy_model(**changes).to(dtype)
        return four_bit_toy(folder, dtype, double="double" in weights, **changes)


@pytest.mark.parametrize("capability", [HOPPER, AMPERE, TURING])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("weights", WEIGHTS)
@torch.no_grad()
def test_logits_are_those_of_plain_weights(tmp_path, monkeypatch, weights, family, capability):
    dtype = torch.float16 if capability == TURING else torch.bfloat16
    model = toy_in(tmp_path, weights, family, dtype)
    plain = dequantized(model).float()
    expected = [plain(ids).logits for ids in (IDS, FEW)]
    take_gpu_paths(monkeypatch, capability)
    for ids, logits in zip((IDS, FEW), expected, strict=True):
        assert_rounded(model(ids).logits, logits, products=8)


def adapted(model):
    """The model with an adapter on all experts and projections, and factors that are not zero."""
    torch.manual_seed(0)
    model = peft.get_peft_model(model, lora_config("all", r=8, family=model.config.model_type)).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def backward(model):
    model.zero_grad()
    model(input_ids=IDS, labels=IDS, use_cache=False, skip_logits=True).loss.backward()


def gradients(model):
    backward(model)
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.requires_grad}


@pytest.mark.parametrize("capability", [HOPPER, AMPERE])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_gradients_are_those_of_plain_weights(tmp_path, monkeypatch, weights, family, capability):
    model = toy_in(tmp_path, weights, family)
    expected = gradients(adapted(dequantized(model).float()))
    model = adapted(model)
    take_gpu_paths(monkeypatch, capability)
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert_rounded(gradient, expected[name], products=12)
    if weights != "16-bit":
        model.gradient_checkpointing_enable({"use_reentrant": False})
        again = gradients(model)
        assert all(torch.equal(again[name], gradient) for name, gradient in found.items())


@pytest.mark.parametrize("double", [False, True])
def test_an_expert_without_tokens(monkeypatch, double):
    torch.manual_seed(0)
    weight = torch.randn(4, 64, 128, dtype=torch.bfloat16)
    parts = quantize(weight, double).parts
    rows = torch.randn(40, 128, dtype=torch.bfloat16, requires_grad=True)
    experts = torch.tensor([0, 3]).repeat(20).view(-1, 1)  # none for 1 and 2
    routing = Routing(torch.zeros(40, 4), experts, torch.ones(40, 1))
    take_gpu_paths(monkeypatch)
    result = dispatched_product(parts, None, rows, routing)
    plain = parts.dequantize(torch.float32)
    expected = torch.stack([plain[e] @ row for e, row in zip(experts.flatten(), rows.float(), strict=True)])
    assert_rounded(result, expected[routing.sorted().order])
    (slope,) = torch.autograd.grad(result.float().sum(), rows)
    assert_rounded(slope, torch.stack([plain[e].sum(0) for e in experts.flatten()]))


# --- compiled steps


def captured(run, token, position, cache, recorder):
    """What `capture` does, without a graph: a replay reads the tensors of the capture and writes its logits."""
    token, position = token.clone(), position.clone()
    logits = []

    def replay(next_token, next_position):
        token.copy_(next_token)
        position.copy_(next_position)
        logits.append(run(token, position, cache, recorder=recorder))
        return logits[-1].clone()

    return replay


@pytest.mark.compiles
@pytest.mark.parametrize("weights,family", [("double nf4", "jetmoe")])
def test_a_compiled_step_is_one_graph(tmp_path, monkeypatch, weights, family):
    model = toy_in(tmp_path, weights, family, num_hidden_layers=1)
    take_gpu_paths(monkeypatch)
    captures = []
    monkeypatch.setattr(decoding, "capture", lambda *args: captures.append(args) or captured(*args))
    plain, expected = decode(model, partial(step, model))
    compiled, trace = decode(model, compiled_step(model, backend="aot_eager"))
    assert_rounded(compiled, plain, products=4)
    assert len(captures) == 1, "the first steps compile, the others replay one graph"
    assert (trace.experts == expected.experts).all()


@pytest.mark.compiles
@pytest.mark.parametrize("double", [False, True])
def test_products_of_a_prompt_compile_with_their_gradient(monkeypatch, double):
    torch.manual_seed(0)
    parts = quantize(torch.randn(4, 64, 128, dtype=torch.bfloat16), double).parts
    rows = torch.randn(40, 128, dtype=torch.bfloat16, requires_grad=True)
    experts = torch.arange(40).view(-1, 1) % 4
    take_gpu_paths(monkeypatch)

    def product(rows, experts):
        return dispatched_product(parts, None, rows, Routing(torch.zeros(40, 4), experts, torch.ones(40, 1)))

    expected = product(rows, experts)
    result = torch.compile(product, fullgraph=True, dynamic=False, backend="aot_eager")(rows, experts)
    assert torch.equal(result, expected)
    slopes = [torch.autograd.grad(one.float().sum(), rows)[0] for one in (result, expected)]
    assert torch.equal(*slopes)


def test_a_step_is_captured_again_for_another_cache():
    calls, captures = [], []

    def run(token, position, cache, recorder=None):
        calls.append(cache)
        return token.float()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "capture", lambda *args: captures.append(args[3]) or captured(*args))
        captured_step, first, second = decoding.CapturedStep(run), object(), object()
        for cache in (first, first, first, first, second, second, second):
            token = torch.tensor([[len(calls)]])
            assert float(captured_step(token, token, cache)) == len(calls) - 1
    assert captures == [first, second] and calls == [first] * 4 + [second] * 3


def test_a_capture_that_fails_is_logged(monkeypatch, caplog):
    def fails(*args):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(decoding, "capture", fails)
    captured_step, token = decoding.CapturedStep(lambda token, *args, **kwargs: token), torch.tensor([[1]])
    assert [int(captured_step(token, token, "cache")) for _ in range(5)] == [1] * 5
    assert caplog.text.count("without a CUDA graph, because capturing it failed: operation not permitted") == 1


# --- attention and numbers


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_with_a_mask_repeats_the_keys(monkeypatch, family):
    model = toy_model(**SIZES, family=family)
    mask = torch.ones_like(IDS)
    mask[0, :5] = 0
    expected = model(IDS, attention_mask=mask).logits
    take_gpu_paths(monkeypatch)
    attend, grouped = F.scaled_dot_product_attention, []

    def seen(*args, **kwargs):
        grouped.append(kwargs.get("enable_gqa"))
        return attend(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", seen)
    torch.testing.assert_close(model(IDS, attention_mask=mask).logits, expected)
    assert grouped and not any(grouped)
    grouped.clear()
    model.bfloat16()(IDS)
    assert all(grouped), "flash attention reads each key once"


@torch.no_grad()
def test_large_activations_do_not_overflow_in_fp16(monkeypatch):
    """Squares and sums of activations around 1,000 exceed fp16's largest number, 65,504."""
    model = toy_model(**SIZES, num_experts_per_tok=4)
    model.model.embed_tokens.weight.mul_(5000)
    expected = model(IDS).logits
    assert model.model.embed_tokens.weight.abs().max() > 1000
    take_gpu_paths(monkeypatch, TURING)
    assert_rounded(model.half()(IDS).logits, expected, products=4)


# --- costs


# A layer's operations at most: of a step, of a prompt, of training with checkpointing; and whether the loops over the
# experts of its two routers wait for the GPU, once in each pass.
BUDGETS = [
    ("16-bit", HOPPER, (42, 58, 275), False),
    ("nf4", HOPPER, (54, 62, 290), False),
    ("16-bit", AMPERE, (42, 125, 850), True),
    ("nf4", AMPERE, (54, 95, 865), True),
]


@pytest.mark.parametrize("weights,capability,most,loops", BUDGETS)
def test_operations_of_a_layer(tmp_path, monkeypatch, weights, capability, most, loops):
    """A GPU takes some microseconds to launch each."""
    sizes = {"num_experts_per_tok": 2, "num_local_experts": 8, "num_hidden_layers": 2}
    model = toy_in(tmp_path, weights, **sizes)
    take_gpu_paths(monkeypatch, capability)
    step_most, prompt_most, training_most = most
    with torch.no_grad():
        for ids, most, waiting in ((FEW[:, :1], step_most, 0), (IDS, prompt_most, 2 * loops)):
            operations, waits = cost_of_layer(model, lambda ids=ids: model(ids, use_cache=False))
            assert len(operations) <= most and len(waits) == waiting, operations
    tuned = adapted(model)
    tuned.gradient_checkpointing_enable({"use_reentrant": False})
    operations, waits = cost_of_layer(model, lambda: backward(tuned))
    assert len(operations) <= training_most and len(waits) == 4 * loops, operations
