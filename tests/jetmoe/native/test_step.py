"""The native step against the eager one: logits, recorded routing, sizes, precisions, adapters, threads, bad input."""

import copy
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import peft
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, StaticCache

from jetmoe import RoutingRecorder, c_library
from jetmoe.lora import lora_config
from jetmoe.low_rank import pack
from jetmoe.native.description import NotNativeError
from jetmoe.native.step import NativeStep
from tests.builders.four_bits import assert_rounded, dequantized, four_bit_toy
from tests.builders.native_steps import IDS, assert_equal, decode
from tests.builders.toy_model import TOYS, toy_model

FAMILIES = list(TOYS)


# --- sizes


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_eager_step(family):
    assert_equal(toy_model(family=family), prompt=9, tokens=80)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    family=st.sampled_from(FAMILIES),
    heads=st.integers(1, 4),
    groups=st.integers(1, 3),
    channels=st.sampled_from([2, 6, 8, 34]),
    experts=st.integers(1, 9),
    top_k=st.integers(1, 9),
    width=st.sampled_from([1, 7, 32, 33, 65]),
    prompt=st.sampled_from([1, 63, 64]),
    seed=st.integers(0, 99),
)
def test_odd_sizes(family, heads, groups, channels, experts, top_k, width, prompt, seed):
    sizes = {"num_key_value_heads": heads, "intermediate_size": width, "num_experts_per_tok": min(top_k, experts)}
    if family == "jetmoe":
        sizes |= {"kv_channels": channels, "num_local_experts": experts, "hidden_size": 6 * groups}
    else:
        hidden = heads * groups * channels
        sizes |= {"num_attention_heads": heads * groups, "num_experts": experts, "hidden_size": hidden}
    assert_equal(toy_model(seed=seed, family=family, num_hidden_layers=1, **sizes), prompt=prompt, tokens=3)


@pytest.mark.parametrize(
    "settings",
    [{"clip_qkv": 0.3}, {"norm_topk_prob": True}, {"attention_bias": True}, {"tie_word_embeddings": True}],
    ids=lambda settings: next(iter(settings)),
)
def test_options_of_olmoe(settings):
    model = toy_model(family="olmoe", **settings)
    if model.config.attention_bias:
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)
    assert_equal(model)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3"])
def test_scaled_rotary_embeddings(family, kind):
    longer = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    rope = {
        "rope_type": kind,
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 12,
        **longer,
    }
    assert_equal(toy_model(family=family, rope_parameters=rope), prompt=9, tokens=12)


def test_tied_experts_stay_tied():
    model = toy_model(num_local_experts=6)
    for layer in model.model.layers:
        router = layer.mlp.router.layer.weight
        router.data[3:] = router.data[:3]
    _, recorder = decode(model)
    moe = recorder.logits[9:17, 1::2]
    assert torch.equal(moe[..., :3], moe[..., 3:])


# --- precisions


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16(family):
    model = toy_model(family=family).bfloat16()
    native, _ = decode(model)
    exact, _ = decode(toy_model(family=family), native=False)
    assert_rounded(native, exact, products=4)


@pytest.mark.parametrize("family", FAMILIES)
def test_4_bits(family, tmp_path):
    model = four_bit_toy(tmp_path, torch.bfloat16, family=family)
    native, _ = decode(model)
    exact, _ = decode(dequantized(model).float(), native=False)
    assert_rounded(native, exact, products=4)


# --- adapters


def adapted(model, preset, family="jetmoe", name="default"):
    config = lora_config(preset, r=3, lora_alpha=6, family=family)
    if isinstance(model, peft.PeftModel):
        model.add_adapter(name, config)
    else:
        model = peft.get_peft_model(model, config, adapter_name=name)
    for parameter_name, parameter in model.named_parameters():
        if f"lora_B.{name}" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("preset", ["attention", "experts", "all", "router"])
def test_adapters(family, preset):
    model = toy_model(family=family)
    plain, _ = decode(model)
    whole = adapted(model, preset, family)
    assert_equal(model)
    assert not torch.equal(decode(model)[0], plain)
    with whole.disable_adapter():
        assert torch.equal(decode(model)[0], plain)


def test_several_adapters_are_switched_and_joined():
    model = toy_model()
    whole = adapted(adapted(model, "all", name="one"), "all", name="two")
    results = {}
    for active in ("one", "two", ["one", "two"]):
        whole.base_model.set_adapter(active)
        assert_equal(model)
        results[str(active)] = decode(model)[0]
    assert len({float(logits.sum()) for logits in results.values()}) == 3
    whole.base_model.set_adapter("one")
    assert torch.equal(decode(model)[0], results["one"])
    pack(model, "one")
    torch.testing.assert_close(decode(model)[0], results["one"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_in_4_bits(family, tmp_path):
    model = four_bit_toy(tmp_path, torch.bfloat16, family=family)
    exact = dequantized(model).float()
    for one in (model, exact):
        torch.manual_seed(1)
        adapted(one, "all", family)
    assert_rounded(decode(model)[0], decode(exact, native=False)[0], products=6)


# --- threads


@pytest.mark.parametrize("threads", [2, 5])
def test_the_number_of_threads_does_not_change_a_bit(threads):
    model = toy_model(hidden_size=96, intermediate_size=200, num_hidden_layers=3)
    cache = StaticCache(config=model.config, max_cache_len=49)
    with torch.no_grad():  # MKL's products of a prompt depend on the number of threads
        model(torch.tensor([IDS[:9]]), past_key_values=cache)

    def decoded() -> list[torch.Tensor]:
        run, own = NativeStep(model), copy.deepcopy(cache)
        return [run(token, own).clone() for token in IDS[9:49]]

    one = decoded()
    torch.set_num_threads(threads)
    assert all(map(torch.equal, decoded(), one))


def test_it_runs_in_several_threads_and_in_a_fork():
    model = toy_model()
    torch.set_num_threads(2)
    expected, _ = decode(model)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(logits, expected) for logits, _ in pool.map(lambda _: decode(model), range(8)))
    cache = StaticCache(config=model.config, max_cache_len=10)
    with torch.no_grad():
        model(torch.tensor([IDS[:9]]), past_key_values=cache)
    after = NativeStep(model)(5, copy.deepcopy(cache))
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # no hang, but a failure
        torch.set_num_threads(1)  # torch's own threads do not exist after a fork
        # No prompt: another thread may have held the lock of MKL's memory, which only products of matrices need.
        os._exit(int(not torch.equal(NativeStep(model)(5, cache), after)))
    assert os.waitpid(child, 0)[1] == 0


# --- bad input


def test_sizes_are_checked():
    model = toy_model()
    cache = StaticCache(config=model.config, max_cache_len=2)
    run, recorder = NativeStep(model), RoutingRecorder(model, 1)
    with pytest.raises(ValueError, match="Token 99 is not in the vocabulary of 99"):
        run(99, cache)
    with pytest.raises(ValueError, match="Token -1 is not"):
        run(-1, cache)
    run(3, cache, recorder)
    with pytest.raises(ValueError, match="The recorder is full with 1 tokens"):
        run(4, cache, recorder)
    run(4, cache)
    with pytest.raises(ValueError, match="The cache is full with 2 tokens"):
        run(5, cache)


@pytest.mark.parametrize("problem", ["not static", "of a batch", "of another dtype"])
def test_other_caches_are_refused(problem):
    model = toy_model()
    cache = StaticCache(config=model.config, max_cache_len=8)
    if problem == "not static":
        cache = DynamicCache(config=model.config)
    else:
        dtype = torch.float64 if problem == "of another dtype" else torch.float32
        cache.early_initialization(2 if problem == "of a batch" else 1, 2, 8, dtype, "cpu")
    with pytest.raises(TypeError, match=r"needs a .*cache"):
        NativeStep(model)(3, cache)


def unsupported(kind):
    model = toy_model(**({"activation_function": "gelu"} if kind == "activation" else {}))
    if kind == "fp64":
        return model.double()
    if kind == "hooks":
        model.model.layers[1].mlp.register_forward_hook(lambda *args: None)
    if kind == "DoRA":
        peft.get_peft_model(model, peft.LoraConfig(target_modules=["kv_proj"], use_dora=True)).eval()
    if kind == "embeddings":
        peft.get_peft_model(model, peft.LoraConfig(target_modules=["embed_tokens"]))
    return model


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("activation", "only computes experts with silu"),
        ("fp64", "in torch.float64"),
        ("hooks", "the model has hooks"),
        ("DoRA", "it uses Dora"),
        ("embeddings", "an adapter changes its embeddings"),
    ],
)
def test_what_it_can_not_compute_is_named(kind, reason):
    with pytest.raises(NotNativeError, match=reason):
        NativeStep(unsupported(kind))


def test_without_a_compiler_the_reason_and_the_fix_are_given(monkeypatch):
    monkeypatch.setattr(c_library, "built", lambda source: (None, "No C compiler was found; install gcc."))
    with pytest.raises(NotNativeError, match="No C compiler was found; install gcc"):
        NativeStep(toy_model())
