"""The expert layer against the dumbest correct code: every path, outputs and gradients."""

from functools import partial

import peft
import pytest
import torch
import torch.nn.functional as F

from jetmoe.experts.assignments import Routing, combine, dispatch, permute
from jetmoe.experts.experts import LinearExperts, call_experts
from jetmoe.experts.products import chosen_product, dispatched_product, gated_product, sorted_product
from jetmoe.nf4 import cpu as nf4_cpu
from jetmoe.nf4 import tensor as nf4
from jetmoe.norm import RMSNorm
from tests.builders.experts import dumb


def make(T, E, K, seed=0):
    torch.manual_seed(seed)
    experts = LinearExperts(E, 8, 6)
    torch.nn.init.normal_(experts.weight)
    logits = torch.randn(T, E)
    picked, ids = logits.topk(K)
    tokens = torch.randn(T, 8, requires_grad=True)
    return experts, tokens, Routing(logits, ids, picked.softmax(-1))


@pytest.mark.parametrize(("T", "E", "K"), [(1, 4, 2), (7, 4, 1), (7, 4, 4), (33, 12, 3), (2, 64, 8)])
@pytest.mark.parametrize("path", ["sorted", "chosen"])
def test_products_and_gradients(T, E, K, path):
    """Also with experts that no token picks (E = 64)."""
    experts, tokens, routing = make(T, E, K)
    expected = dumb(experts.weight, tokens, routing)
    if path == "sorted":
        rows = call_experts(experts, dispatch(tokens, routing), routing, sorted_product)
        rows = permute(rows, routing.sorted().inverse, routing.sorted().order)
    else:
        repeated = tokens.unsqueeze(1).expand(-1, K, -1).reshape(T * K, -1)
        rows = call_experts(experts, repeated, routing, chosen_product)
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-5)

    with torch.no_grad():
        if path == "sorted":
            again = call_experts(experts, dispatch(tokens, routing), routing, sorted_product)
            again = permute(again, routing.sorted().inverse, routing.sorted().order)
            torch.testing.assert_close(again, expected, rtol=1e-5, atol=1e-5)

    weights = torch.randn_like(rows)
    inputs = [experts.weight, tokens]
    grads = torch.autograd.grad((rows * weights).sum(), inputs)
    expected_grads = torch.autograd.grad((expected * weights).sum(), inputs)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-5, atol=1e-5)


def test_sizes_count_the_assignments():
    _, _, routing = make(33, 12, 3)
    expected = [int((routing.experts == e).sum()) for e in range(12)]
    assert routing.sorted().sizes() == expected


def test_combine_weighs_by_gate():
    _, _, routing = make(5, 4, 2)
    rows = torch.randn(10, 6)
    expected = torch.stack([sum(routing.gates[t, k] * rows[2 * t + k] for k in range(2)) for t in range(5)])
    torch.testing.assert_close(combine(rows, routing.gates), expected)


# --- frozen weights with adapters beside them


def adapted_experts(E, out, inner, R=4, dtype=torch.bfloat16, stored="plain"):
    """Stock PEFT's wrapper of a frozen expert layer, its factors not zero."""
    experts = LinearExperts(E, inner, out)
    torch.nn.init.normal_(experts.weight)
    if stored != "plain":
        parts = nf4.quantize(experts.weight.detach().to(dtype)).parts
        experts.weight = torch.nn.Parameter(nf4.NF4Tensor(parts.tile() if stored == "tiles" else parts, dtype), False)
    config = peft.LoraConfig(r=R, lora_alpha=6, target_parameters=["experts.weight"])
    wrapper = peft.get_peft_model(torch.nn.ModuleDict({"experts": experts}), config).base_model.model["experts"]
    for factor in (wrapper.lora_A, wrapper.lora_B):
        torch.nn.init.normal_(factor["default"].weight, std=0.3)
    return wrapper.to(dtype)


def dumb_adapted(wrapper, tokens, routing):
    """In fp32, from the weights that stock PEFT would make."""
    factors = wrapper.lora_A["default"].weight, wrapper.lora_B["default"].weight
    weight = wrapper.get_base_layer().weight.detach()
    weight = weight.dequantize(torch.float32) if isinstance(weight, nf4.NF4Tensor) else weight.float()
    E, out, inner = weight.shape
    A, B = (factor.detach().float().requires_grad_() for factor in factors)
    per_expert = [B.view(out, -1, E)[:, :, e] @ A.view(E, -1, inner)[e] for e in range(E)]  # [out, in] each
    wide = tokens.detach().float().requires_grad_()
    changed = torch.stack([weight[e] + wrapper.scaling["default"] * per_expert[e] for e in range(E)])
    return dumb(changed, wide, routing), [wide, A, B]


def uneven_routing(sizes, K, seed=0):
    """Each expert gets as many assignments as asked; no token picks an expert twice."""
    torch.manual_seed(seed)
    ids = torch.cat([torch.full((size,), e) for e, size in enumerate(sizes)])
    experts = ids.view(K, -1).t()  # [T, K]: an expert that got at most T is in no row twice
    experts = experts[torch.randperm(len(experts))]
    logits = torch.zeros(len(experts), len(sizes))
    return Routing(logits, experts, torch.full(experts.shape, 1 / K))


def run_frozen(wrapper, tokens, routing, path):
    """In token order, by the products that gather tokens themselves or by those of sorted rows, also weighed by 1."""
    if path == "gathered":
        rows = call_experts(wrapper, tokens, routing, dispatched_product)
    elif path == "weighed":
        gates = torch.ones(routing.experts.numel(), 1, dtype=tokens.dtype)
        rows = call_experts(
            wrapper, dispatch(tokens, routing), routing, partial(gated_product, gates=gates, before=torch.mul)
        )
    else:
        rows = call_experts(wrapper, dispatch(tokens, routing), routing, sorted_product)
    return permute(rows, routing.sorted().inverse, routing.sorted().order)


def gradients(rows, wrapper, tokens, direction):
    factors = [wrapper.lora_A["default"].weight, wrapper.lora_B["default"].weight]
    return torch.autograd.grad((rows.float() * direction).sum(), [tokens, *factors])


# Nothing for some, one row, sizes next to a power of two, and a last expert whose room lies beyond the rows.
SIZES = [[0, 1, 33, 66, 0, 20], [40, 0, 0, 0, 40, 40], [0, 0, 61, 0, 0, 59], [1, 17, 31, 16, 15, 40]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("path", ["gathered", "sorted", "weighed"])
@pytest.mark.parametrize("K", [1, 2, 3])
@pytest.mark.parametrize("sizes", SIZES)
def test_frozen_weights_with_adapters(sizes, K, path, dtype):
    routing = uneven_routing(sizes, K)
    assert routing.sorted().sizes() == sizes
    wrapper = adapted_experts(len(sizes), 24, 40, dtype=dtype)
    assert_as_dumb(wrapper, torch.randn(len(routing.experts), 40, dtype=dtype), routing, path)


@pytest.mark.parametrize("adapted", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_computed_again_has_the_same_gradients(dtype, adapted):
    """A gated unit before the product, as a feed-forward expert has; the gates have a gradient too."""
    sizes = SIZES[0]
    routing = uneven_routing(sizes, 2)
    wrapper = adapted_experts(len(sizes), 24, 20, dtype=dtype)
    experts = wrapper if adapted else wrapper.get_base_layer()

    def before(rows, gates):
        gate, up = rows.chunk(2, dim=-1)
        return F.silu(gate) * up * gates

    rows = torch.randn(sum(sizes), 40, dtype=dtype, requires_grad=True)
    gates = torch.rand(sum(sizes), 1, dtype=dtype, requires_grad=True)
    inputs = [rows, gates] + [wrapper.lora_A["default"].weight, wrapper.lora_B["default"].weight] * adapted
    results = [
        call_experts(experts, rows, routing, partial(gated_product, gates=gates, before=before)),
        call_experts(experts, before(rows, gates), routing, sorted_product),
    ]
    direction = torch.randn(sum(sizes), 24)
    grads = [torch.autograd.grad((result.float() * direction).sum(), inputs) for result in results]
    for ours, other in zip([results[0], *grads[0]], [results[1], *grads[1]], strict=True):
        assert_close_for(dtype, ours, other.float())


@pytest.mark.parametrize("stored", ["rows", "tiles"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("path", ["gathered", "sorted", "weighed"])
@pytest.mark.parametrize("sizes", SIZES[:2])
def test_4bit_weights_with_adapters(sizes, path, dtype, stored):
    """Tiles train on any processor and in any dtype, but answer only in bf16 where it multiplies them."""
    routing = uneven_routing(sizes, 2)
    wrapper = adapted_experts(len(sizes), 32, 64, dtype=dtype, stored=stored)
    answers = stored == "rows" or (dtype == torch.bfloat16 and nf4_cpu.supported())
    assert_as_dumb(wrapper, torch.randn(len(routing.experts), 64, dtype=dtype), routing, path, answers)


def assert_as_dumb(wrapper, tokens, routing, path, answers=True):
    """Outputs, when answering too, and all gradients; also where tokens need none."""
    dtype = tokens.dtype
    expected, inputs = dumb_adapted(wrapper, tokens, routing)
    assert_close_for(dtype, run_frozen(wrapper, tokens, routing, path), expected)
    if answers:
        with torch.no_grad():
            assert_close_for(dtype, run_frozen(wrapper, tokens, routing, path), expected)
    tokens.requires_grad_()
    rows = run_frozen(wrapper, tokens, routing, path)
    assert_close_for(dtype, rows, expected)
    direction = torch.randn_like(expected)
    expected_grads = torch.autograd.grad((expected * direction).sum(), inputs)
    for grad, other in zip(gradients(rows, wrapper, tokens, direction), expected_grads, strict=True):
        assert_close_for(dtype, grad, other)


def assert_close_for(dtype, result, expected):
    """bf16 rounds factors, rows and sums to 8 bits each."""
    assert result.dtype == dtype
    share = 1e-5 if dtype == torch.float32 else 2**-6
    atol = share * float(expected.detach().abs().max())
    torch.testing.assert_close(result.float(), expected, rtol=2 * share, atol=atol)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["row", "gradient"])
@pytest.mark.parametrize("path", ["gathered", "sorted", "weighed"])
@pytest.mark.parametrize("K", [1, 2])
def test_a_bad_row_stays_with_its_experts(K, path, where, bad):
    sizes = [33, 0, 40, 17, 30]
    routing = uneven_routing(sizes, K)
    wrapper = adapted_experts(len(sizes), 24, 40)
    tokens = torch.randn(len(routing.experts), 40).bfloat16()
    direction = torch.randn(sum(sizes), 24)
    first = int(routing.sorted().order[sizes[0]])  # of expert 2: the row behind expert 0's
    (tokens[first // K] if where == "row" else direction[first])[3] = bad
    tokens.requires_grad_()
    rows = run_frozen(wrapper, tokens, routing, path)
    expected, inputs = dumb_adapted(wrapper, tokens, routing)
    assert torch.equal(rows.isfinite().all(1), expected.isfinite().all(1))
    expected_grads = torch.autograd.grad((expected * direction).sum(), inputs)
    assert not all(other.isfinite().all() for other in expected_grads)
    for grad, other in zip(gradients(rows, wrapper, tokens, direction), expected_grads, strict=True):
        assert (grad.isfinite() | ~other.isfinite()).all()


# --- norms that keep their input as it is


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", [False, True])
def test_norm_and_its_gradients(dtype, frozen):
    torch.manual_seed(0)
    norm = RMSNorm(24, 1e-2)
    torch.nn.init.normal_(norm.weight)
    norm.to(dtype).requires_grad_(not frozen)
    hidden = (3 * torch.randn(2, 5, 24)).to(dtype)
    hidden[0, 0] = 0  # where eps alone counts
    before = hidden.clone()
    hidden.requires_grad_()
    result = norm(hidden)
    wide, weight = hidden.detach().float().requires_grad_(), norm.weight.detach().float().requires_grad_()
    expected = F.rms_norm(wide, [24], weight, 1e-2)
    assert_close_for(dtype, result, expected)
    inputs, wide_inputs = ([hidden], [wide]) if frozen else ([hidden, norm.weight], [wide, weight])
    direction = torch.randn(2, 5, 24)
    grads = torch.autograd.grad((result.float() * direction).sum(), inputs)
    expected_grads = torch.autograd.grad((expected * direction).sum(), wide_inputs)
    for grad, other in zip(grads, expected_grads, strict=True):
        assert_close_for(dtype, grad, other)
    assert torch.equal(hidden, before)
