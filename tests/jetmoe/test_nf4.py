"""4-bit experts against bitsandbytes, expert by expert, and against the same weights dequantized."""

import copy
import pickle
import re
import sys

import bitsandbytes.functional as bnb
import peft
import pytest
import torch
from torch import nn

from jetmoe import c_library
from jetmoe.experts.assignments import Routing, dispatch, permute
from jetmoe.experts.experts import LinearExperts, call_experts
from jetmoe.experts.products import chosen_product, sorted_product
from jetmoe.linear import project
from jetmoe.nf4 import cpu as nf4_cpu
from jetmoe.nf4 import parts as nf4
from jetmoe.nf4.tensor import NF4Tensor, quantize
from tests.builders.experts import dumb
from tests.builders.four_bits import assert_rounded, dequantized, four_bit_toy

tiles_only = pytest.mark.skipif(not nf4_cpu.supported(), reason="this processor has no AVX512-BF16 to multiply tiles")
IDS = torch.randint(3, 99, (2, 20), generator=torch.Generator().manual_seed(0))
# 320 blocks an expert: one whole nested block and a part of one.
E, OUT, IN = 4, 64, 320


def weights(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return torch.randn(E, OUT, IN, dtype=dtype) * torch.rand(E, OUT, 1, dtype=dtype)


def equal(parts, others):
    """Whether two Parts are the same, bit for bit."""
    pairs = list(zip(parts, others, strict=True))
    return all(a is b is None or (a.dtype == b.dtype and torch.equal(a, b)) for a, b in pairs)


def experts_of(weight):
    experts = LinearExperts(*weight.shape[:1], weight.shape[2], weight.shape[1])
    experts.weight = nn.Parameter(weight, requires_grad=False)
    return experts


# --- storage


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_expert_is_what_bitsandbytes_makes_of_it_alone(dtype):
    weight = weights(dtype)
    parts = quantize(weight).parts
    for e in range(E):
        codes, state = bnb.quantize_4bit(weight[e].contiguous(), blocksize=64, quant_type="nf4")
        assert torch.equal(parts.codes[e].flatten(), codes.flatten())
        assert torch.equal(parts.absmax[e].flatten(), state.absmax)
        assert torch.equal(parts.dequantize(dtype)[e], bnb.dequantize_4bit(codes, state))


@pytest.mark.parametrize("compiler", [True, False])
def test_weights_that_are_hard_to_round(monkeypatch, compiler):
    """Blocks of zeros and of tiny numbers, and every bf16 between -1 and 1, so all that lie between two codes."""
    if not compiler:
        monkeypatch.setattr(nf4_cpu, "quantizer", lambda: None)
    every = torch.arange(2**15).to(torch.int16).view(torch.bfloat16)
    every = every[every < 1]
    every = torch.cat([every, -every])
    fill = torch.ones(-len(every) % 63, dtype=torch.bfloat16)
    blocks = torch.cat([every, fill]).view(-1, 63)
    blocks = torch.cat([blocks, torch.ones(len(blocks), 1, dtype=torch.bfloat16)], dim=1)  # each scaled by one
    torch.manual_seed(0)
    others = torch.zeros(1, 64), torch.full((1, 64), 1e-40), torch.randn(2**13, 64)
    weight = torch.cat([blocks, *(block.bfloat16() for block in others)])
    parts = quantize(weight.unsqueeze(0)).parts
    codes, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    assert torch.equal(parts.codes.flatten(), codes.flatten()) and torch.equal(parts.absmax.flatten(), state.absmax)


def test_double_quantization_is_that_of_bitsandbytes():
    weight = weights()
    parts = quantize(weight, double=True).parts
    assert parts.absmax.dtype == torch.uint8 and parts.nested_absmax.shape == (E, 2)
    for e in range(E):
        codes, state = bnb.quantize_4bit(weight[e], blocksize=64, quant_type="nf4", compress_statistics=True)
        torch.testing.assert_close(parts.dequantize(torch.float32)[e], bnb.dequantize_4bit(codes, state))
        assert equal(parts.expert(e), quantize(weight[e : e + 1], double=True).parts)


def test_bytes_a_parameter():
    weight = torch.randn(2, 512, 512)
    assert quantize(weight).parts.nbytes <= 0.57 * weight.numel()
    assert quantize(weight, double=True).parts.nbytes <= 0.53 * weight.numel()
    assert quantize(weight).parts.tile().nbytes <= 0.57 * weight.numel()


@pytest.mark.parametrize("double", [False, True])
def test_tiles_are_packed_as_bitsandbytes_packs(double):
    rows = quantize(weights(), double).parts
    tiles = rows.tile()
    assert tiles.tiled and tiles.shape == rows.shape == (E, OUT, IN) and tiles.tile() is tiles
    for e in range(E):
        scales = rows.scales()[e].flatten()
        state = bnb.QuantState(scales, torch.Size([OUT, IN]), None, 64, "nf4", torch.float32)
        packed, state = bnb._convert_weight_packed_for_cpu(rows.codes[e], state)
        assert torch.equal(tiles.codes[e].flatten(), packed.flatten())
        assert torch.equal(tiles.absmax[e], state.absmax)
    again = tiles.untile()
    assert torch.equal(again.codes, rows.codes) and again.untile() is again
    assert torch.equal(again.absmax, rows.scales().bfloat16().float())
    assert equal(again.tile(), tiles)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="multiple of 64; this one is 96"):
        quantize(torch.randn(2, 32, 96))
    with pytest.raises(ValueError, match="multiple of 32 rows; these experts have 48"):
        quantize(torch.randn(2, 48, 64)).parts.tile()


def test_a_missing_bitsandbytes_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(RuntimeError, match=r"4-bit weights need bitsandbytes.*pip install 'bitsandbytes") as raised:
        nf4.require_bitsandbytes()
    assert "16-bit" in str(raised.value)


def test_a_broken_bitsandbytes_is_one_sentence(monkeypatch, tmp_path):
    (tmp_path / "bitsandbytes.py").write_text("raise OSError('libbitsandbytes_cpu.so: invalid ELF header')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bitsandbytes")
    with pytest.raises(RuntimeError, match=r"importing it fails \(libbits.* invalid ELF header\).*pip install"):
        nf4.require_bitsandbytes()


# --- the parameter

LAYOUTS = {
    "rows": lambda weight: quantize(weight),
    "double": lambda weight: quantize(weight, double=True),
    "tiles": lambda weight: NF4Tensor(quantize(weight).parts.tile(), weight.dtype),
}


@pytest.fixture(params=LAYOUTS)
def parameter(request):
    return nn.Parameter(LAYOUTS[request.param](weights(torch.bfloat16)), requires_grad=False)


def test_parameter_looks_like_plain_weights(parameter):
    assert isinstance(parameter, nn.Parameter) and isinstance(parameter, NF4Tensor)
    assert parameter.shape == (E, OUT, IN) and parameter.dtype == torch.bfloat16 and not parameter.requires_grad
    assert parameter.dequantize().dtype == torch.bfloat16 and parameter.dequantize().shape == parameter.shape
    holder = nn.Module()
    holder.weight = parameter
    assert dict(holder.named_parameters())["weight"] is parameter


def test_parameter_is_copied_whole(parameter):
    copies = [copy.deepcopy(parameter), pickle.loads(pickle.dumps(parameter))]
    for other in copies:
        assert isinstance(other, nn.Parameter) and isinstance(other, NF4Tensor) and other.dtype == parameter.dtype
        assert equal(other.parts, parameter.parts)
        assert other.parts.codes.data_ptr() != parameter.parts.codes.data_ptr()
    memo = {}
    assert copy.deepcopy(parameter, memo) is copy.deepcopy(parameter, memo)


def test_whole_models_are_saved_by_torch(parameter, tmp_path):
    torch.save(experts_of(parameter), tmp_path / "experts.pt")
    loaded = torch.load(tmp_path / "experts.pt", weights_only=False)
    assert isinstance(loaded.weight, nn.Parameter) and equal(loaded.weight.parts, parameter.parts)


def test_moving_keeps_what_is_stored(parameter):
    assert equal(parameter.cpu().parts, parameter.parts)
    wide = parameter.to(torch.float32)
    assert wide.dtype == torch.float32 and equal(wide.parts, parameter.parts)
    assert wide.dequantize().dtype == torch.float32
    meta = parameter.to("meta")
    assert isinstance(meta, NF4Tensor) and meta.device.type == meta.parts.codes.device.type == "meta"
    assert meta.parts.shape == parameter.parts.shape

    experts = experts_of(parameter)
    assert equal(experts.to(torch.float16).weight.parts, parameter.parts) and experts.weight.dtype == torch.float16
    assert isinstance(experts.weight, nn.Parameter)
    assert experts.to("meta").weight.parts.codes.device.type == "meta"


def test_it_shows_its_true_size():
    plain, double = quantize(torch.randn(2, 1024, 1024)), quantize(torch.randn(2, 1024, 1024), double=True)
    assert repr(plain) == "NF4Tensor([2, 1024, 1024], 1.1 MiB, device=cpu, dtype=torch.float32)"
    assert "1.0 MiB doubly quantized" in repr(double)
    assert "1.1 MiB in tiles" in repr(NF4Tensor(plain.parts.tile()))
    assert repr(experts_of(plain)) == "LinearExperts(weight=[2, 1024, 1024] nf4 1.1 MiB)"


@pytest.mark.parametrize(
    "operation", [lambda w: w + 1, lambda w: w[0], lambda w: w @ w.mT, lambda w: w.sum(), lambda w: w.zero_()]
)
def test_unsupported_operations_name_dequantize(operation):
    with pytest.raises(NotImplementedError, match="dequantize"):
        operation(quantize(weights()))


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("tiled", [False, True])
def test_state_dict_comes_back(double, tiled):
    parts = quantize(weights(torch.bfloat16), double).parts
    experts = experts_of(NF4Tensor(parts.tile() if tiled else parts))
    saved = experts.state_dict()
    assert all(type(tensor) is torch.Tensor for tensor in saved.values())
    assert len(saved) == (4 if double and not tiled else 2) and saved["weight"].dtype == torch.uint8
    other = quantize(torch.zeros(E, OUT, IN, dtype=torch.bfloat16), double).parts
    other = experts_of(NF4Tensor(other.tile() if tiled else other))
    other.load_state_dict(saved)
    assert equal(other.weight.parts, experts.weight.parts)


def test_state_dicts_of_either_kind_load_into_either():
    plain, four_bit = experts_of(weights()), experts_of(quantize(weights(seed=1)))
    tiles = experts_of(NF4Tensor(quantize(weights(seed=2)).parts.tile(), torch.float32))
    for experts in (four_bit, tiles):
        experts.load_state_dict(plain.state_dict())
    assert equal(four_bit.weight.parts, quantize(plain.weight).parts)
    assert equal(tiles.weight.parts, quantize(plain.weight).parts.tile())
    plain.load_state_dict(four_bit.state_dict())
    assert torch.equal(plain.weight, four_bit.weight.dequantize())


def test_peft_finds_it_by_its_plain_name(tmp_path):
    model = four_bit_toy(tmp_path, torch.bfloat16)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_parameters=["mlp.input_linear.weight"]))
    shapes = {name: tuple(p.shape) for name, p in adapted.named_parameters() if "lora" in name}
    assert len(shapes) == 4  # two layers
    for name, shape in shapes.items():
        assert "mlp.input_linear" in name
        assert shape == ((4 * 2, 64) if "lora_A" in name else (128, 4 * 2))


# --- products


def uneven(dtype, tokens=20):
    """A routing that gives expert 0 nothing and expert 1 a single token, and the tokens."""
    torch.manual_seed(1)
    ids = torch.tensor([[2, 3]]).repeat(tokens, 1)
    ids[-1] = torch.tensor([3, 1])
    rows = torch.randn(tokens, IN, dtype=dtype)
    return rows, Routing(torch.zeros(tokens, E), ids, torch.full((tokens, 2), 0.5, dtype=dtype))


def both_products(experts, tokens, routing):
    repeated = tokens.repeat_interleave(2, dim=0)
    rows = call_experts(experts, dispatch(tokens, routing), routing, sorted_product)
    in_order = permute(rows, routing.sorted().inverse, routing.sorted().order)
    return in_order, call_experts(experts, repeated, routing, chosen_product)


@pytest.mark.parametrize("tokens", [1, 20])
@pytest.mark.parametrize("double", [False, True])
def test_products_in_fp32(double, tokens):
    experts = experts_of(quantize(weights(), double))
    rows, routing = uneven(torch.float32, tokens)
    for result in both_products(experts, rows, routing):
        torch.testing.assert_close(result, dumb(experts.weight.dequantize(), rows, routing), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 20])
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("layout", ["rows", "double", pytest.param("tiles", marks=tiles_only)])
def test_products_in_bf16(layout, tokens):
    experts = experts_of(LAYOUTS[layout](weights(torch.bfloat16)))
    rows, routing = uneven(torch.bfloat16, tokens)
    expected = dumb(experts.weight.dequantize(torch.float32), rows.float(), routing)
    for result in both_products(experts, rows, routing):
        assert result.dtype == torch.bfloat16
        assert_rounded(result, expected)


@tiles_only
@pytest.mark.usefixtures("two_threads")
def test_tiles_are_dequantized_like_rows():
    tiles = quantize(weights(torch.bfloat16)).parts.tile()
    assert torch.equal(nf4_cpu.dequantize(tiles), tiles.untile().dequantize(torch.bfloat16))


@tiles_only
def test_products_without_a_c_compiler(monkeypatch):
    """bitsandbytes' kernel in the place of ours, which are then compared to each other."""
    assert nf4_cpu.kernel() is not None
    experts = experts_of(LAYOUTS["tiles"](weights(torch.bfloat16)))
    rows, routing = uneven(torch.bfloat16)
    ours = both_products(experts, rows, routing)
    monkeypatch.setattr(nf4_cpu, "kernel", lambda: None)
    for result, other in zip(both_products(experts, rows, routing), ours, strict=True):
        assert_rounded(result, other.float())
        assert_rounded(result, dumb(experts.weight.dequantize(torch.float32), rows.float(), routing))


@pytest.fixture(params=["with a C compiler", "without"])
def either_kernel(request, monkeypatch):
    if request.param == "without":
        monkeypatch.setattr(nf4_cpu, "kernel", lambda: None)


@tiles_only
@pytest.mark.usefixtures("either_kernel", "two_threads")
def test_assignments_may_share_rows():
    tiles = quantize(weights(torch.bfloat16)).parts.tile()
    rows, routing = uneven(torch.bfloat16)
    chosen = routing.experts.flatten()
    shared = nf4_cpu.chosen_linear(rows, chosen, tiles)
    assert torch.equal(shared, nf4_cpu.chosen_linear(rows.repeat_interleave(2, dim=0), chosen, tiles))


@tiles_only
@pytest.mark.usefixtures("either_kernel", "two_threads")
def test_strided_rows():
    tiles = quantize(weights(torch.bfloat16)).parts.tile()
    rows, routing = uneven(torch.bfloat16)
    strided = rows.t().contiguous().t()
    chosen, ends = routing.experts[:, 0], torch.tensor([0, 5, 12, 20])
    assert torch.equal(nf4_cpu.chosen_linear(strided, chosen, tiles), nf4_cpu.chosen_linear(rows, chosen, tiles))
    assert torch.equal(nf4_cpu.sorted_linear(strided, ends, tiles), nf4_cpu.sorted_linear(rows, ends, tiles))


@pytest.fixture
def fresh():
    """What was compiled is forgotten, before and after."""
    cached = (c_library.built, nf4_cpu.kernel, nf4_cpu.dequantizer, nf4_cpu.quantizer)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


@pytest.fixture(
    params=["fails", "makes nothing of use", "is not there", "is too old", "has no place to write", "never ends"]
)
def bad_compiler(request, fresh, tmp_path, monkeypatch):
    """A C compiler that does not help, and what is said of it."""
    scripts = {
        "fails": "echo 'no such option: -fopenmp' >&2; exit 1",
        "makes nothing of use": 'for last; do :; done; echo garbage > "$last"',
        "never ends": "exec sleep 600",
        "is too old": 'shift 2; gcc -O1 -march=x86-64 "$@"',
    }
    if request.param == "is not there":
        monkeypatch.setattr(c_library, "c_compiler", lambda: None)
        return "install gcc"
    if request.param == "has no place to write":
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
        return "set CC .* and TMPDIR"
    if request.param == "never ends":
        monkeypatch.setattr(c_library, "TIMEOUT_S", 0.2)
    compiler = tmp_path / "fake-cc"
    compiler.write_text(f"#!/bin/sh\n{scripts[request.param]}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    return "install a newer gcc" if request.param == "is too old" else r"fake-cc can't build cpu\.c .* set CC"


@tiles_only
def test_a_c_compiler_that_does_not_help_is_announced_and_done_without(bad_compiler, caplog):
    experts = experts_of(LAYOUTS["tiles"](weights(torch.bfloat16)))
    rows, routing = uneven(torch.bfloat16)
    c_library.built.cache_clear()
    nf4_cpu.quantizer.cache_clear()
    with pytest.warns(UserWarning, match=bad_compiler):
        in_order = both_products(experts, rows, routing)[1]
    assert nf4_cpu.kernel() is None and re.search(bad_compiler, caplog.text)
    assert_rounded(in_order, dumb(experts.weight.dequantize(torch.float32), rows.float(), routing))


def test_a_c_compiler_that_works_needs_no_word(fresh, recwarn):
    assert nf4_cpu.quantizer() is not None and not recwarn.list


@tiles_only
def test_nor_does_one_that_knows_the_processor(fresh, recwarn):
    assert nf4_cpu.kernel() is not None and not recwarn.list


@pytest.mark.parametrize("path", ["sorted", "chosen"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_rows(layout, path):
    """In tiles too, whose own products have none; on any processor."""
    experts = experts_of(LAYOUTS[layout](weights()))
    rows, routing = uneven(torch.float32)
    rows.requires_grad_()
    result = both_products(experts, rows, routing)[("sorted", "chosen").index(path)]
    expected = dumb(experts.weight.dequantize(), rows, routing)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    direction = torch.randn_like(result)
    grads = [torch.autograd.grad((output * direction).sum(), rows)[0] for output in (result, expected)]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-4)


# --- whole models


@pytest.mark.parametrize("double", [False, True])
@torch.no_grad()
def test_logits_in_fp32(tmp_path, double):
    model = four_bit_toy(tmp_path, torch.float32, double)
    torch.testing.assert_close(model(IDS).logits, dequantized(model)(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("double", [False, True])
@torch.no_grad()
def test_logits_in_bf16(tmp_path, double):
    """Every expert is picked, so that no rounding picks another; for many tokens and for few."""
    model = four_bit_toy(tmp_path, torch.bfloat16, True, num_experts_per_tok=4, initializer_range=0.1)
    plain = dequantized(model).float()
    for ids in (IDS, IDS[:1, :2]):
        assert_rounded(model(ids).logits, plain(ids).logits, products=4)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2**-7)])
def test_gradient_of_the_embeddings(tmp_path, dtype, tolerance, checkpointing):
    """After a plain forward, as when a chat model is trained: what that leaves behind must not hide a gradient."""
    model = four_bit_toy(tmp_path, dtype)
    with torch.no_grad():
        model(IDS)
    plain = dequantized(model)
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.train()
    embedded = model.get_input_embeddings()(IDS).detach()
    results = []
    for one in (model, plain):
        rows = embedded.clone().requires_grad_()
        logits = one(inputs_embeds=rows, use_cache=False).logits
        results.append((logits, torch.autograd.grad(logits.float().pow(2).mean(), rows)[0]))
    (logits, grad), (expected, expected_grad) = results
    torch.testing.assert_close(logits, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(grad, expected_grad, rtol=tolerance, atol=tolerance * float(expected_grad.abs().max()))


@tiles_only
@pytest.mark.usefixtures("two_threads")
def test_key_value_projection_in_tiles(tmp_path, monkeypatch):
    """A few rows, many, and rows with a gradient each take their own way."""
    called = []
    for name in ("chosen_linear", "sorted_linear"):
        kernel = getattr(nf4_cpu, name)
        monkeypatch.setattr(nf4_cpu, name, lambda *args, name=name, kernel=kernel: called.append(name) or kernel(*args))
    linear = four_bit_toy(tmp_path, torch.bfloat16).model.layers[0].self_attention.kv_proj
    weight = bnb.dequantize_4bit(linear.weight.data, linear.weight.quant_state).float()
    for shape in [(1, 1, 64), (2, 2, 64), (2, 20, 64)]:
        rows = torch.randn(shape, dtype=torch.bfloat16)
        assert_rounded(project(linear, rows), rows.float() @ weight.t())
        rows.requires_grad_()
        (grad,) = torch.autograd.grad(project(linear, rows).sum(), rows)
        assert_rounded(grad, weight.sum(0).expand(shape))
    assert called == ["chosen_linear", "chosen_linear", "sorted_linear"]
