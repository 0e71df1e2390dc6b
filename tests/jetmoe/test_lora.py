"""Presets, hot experts, several adapters on a model, adapters that are not what they seem, audit and merge."""

import copy
import gc
import itertools
import json
import math
import shutil
import weakref
from fractions import Fraction

import bitsandbytes.functional as bnb
import numpy as np
import peft
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from peft.helpers import rescale_adapter_scale
from safetensors.torch import load_file, save_file
from transformers import DynamicCache

from jetmoe import JetMoeConfig, JetMoeForCausalLM, JetMoeForSequenceClassification
from jetmoe.adapters.audit import audit
from jetmoe.adapters.files import MAX_RANK
from jetmoe.adapters.hot_experts import hot_experts, mask_gradients
from jetmoe.adapters.merge import merge
from jetmoe.adapters.switching import Adapters
from jetmoe.adapters.wrappers import wrappers
from jetmoe.decode import compiled_step, step
from jetmoe.loading.load import load
from jetmoe.lora import AdapterError, lora_config, require_free_routers
from jetmoe.low_rank import split_adapters, without_adapters
from jetmoe.nf4 import cpu as nf4_cpu
from jetmoe.nf4.tensor import NF4Tensor, quantize
from tests.builders.decoding import decode
from tests.builders.four_bits import WIDE, assert_rounded, dequantized, four_bit_toy
from tests.builders.toy_model import TOY, toy_model

IDS = torch.randint(3, 99, (2, 20), generator=torch.Generator().manual_seed(0))
KV = ["self_attention.kv_proj"]
MOA = ["self_attention.experts.input_linear", "self_attention.experts.output_linear"]
MOE = ["mlp.input_linear", "mlp.output_linear"]
MOA_WEIGHTS = ["experts.input_linear.weight", "experts.output_linear.weight"]
ROUTERS = ["self_attention.experts.router.layer", "mlp.router.layer"]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def adapted(model, preset, seed=1, **options):
    """With factors that are not zero."""
    result = peft.get_peft_model(model, lora_config(preset, **{"r": 4, "lora_alpha": 6, **options}))
    torch.manual_seed(seed)
    for name, parameter in result.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return result


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Adapters of different presets and ranks, as folders."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, (preset, rank) in enumerate([("experts", 3), ("attention", 5), ("all+router", 2), ("all", 4)]):
        adapted(toy_model(), preset, seed, r=rank).save_pretrained(folder / preset)
    return folder


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def alone(folder):
    """What an adapter gives that PEFT loads by itself."""
    return logits(peft.PeftModel.from_pretrained(toy_model(), folder))


# --- presets


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("attention", KV + MOA),
        ("experts", MOE),
        ("moa", MOA),
        ("all", KV + MOA + MOE),
        ("hot", KV + MOA + MOE),
        ("router", ROUTERS),
        ("experts+router", MOE + ROUTERS),
        ("moa+experts", MOA + MOE),
        ("all+router+all", KV + MOA + MOE + ROUTERS),
    ],
)
def test_presets_name_these_tensors_and_no_others(preset, expected):
    model = peft.get_peft_model(toy_model(), lora_config(preset, r=3))
    named = {name.partition(".model.layers.")[2] for name, _ in wrappers(model)}
    assert named == {f"{layer}.{name}" for layer in range(2) for name in expected}
    trained = {name: tuple(one.shape) for name, one in model.named_parameters() if one.requires_grad}
    assert len(trained) == 2 * 2 * len(expected) and all("lora_" in name for name in trained)
    sizes = {
        "kv_proj": (1, 32, 32),
        "self_attention.experts.input_linear": (4, 32, 16),
        "self_attention.experts.output_linear": (4, 16, 32),
        "mlp.input_linear": (4, 32, 32),
        "mlp.output_linear": (4, 16, 32),
        "router.layer": (1, 32, 4),
    }
    for name, shape in trained.items():
        E, inner, out = next(size for ending, size in sizes.items() if name.partition(".lora_")[0].endswith(ending))
        assert shape == ((3 * E, inner) if ".lora_A." in name else (out, 3 * E))


@pytest.mark.parametrize("preset", ["expert", "", "all+", "all,router", "All"])
def test_unknown_presets_are_named(preset):
    with pytest.raises(AdapterError, match=r"no preset .*; choose from attention, experts, moa, all, hot, router"):
        lora_config(preset)


@pytest.mark.parametrize("option", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}])
def test_options_that_experts_lack_are_refused(option):
    with pytest.raises(AdapterError, match=f"Experts don't support {next(iter(option))}, .* Leave it out, or use"):
        lora_config("all", **option)
    config = lora_config("router", **option, exclude_modules=["layers.0.mlp.router.layer"])
    assert getattr(config, next(iter(option))) and config.exclude_modules == {"layers.0.mlp.router.layer"}


def test_routers_that_a_model_ties_are_guarded():
    tied, free = JetMoeConfig(**TOY, expert_groups=[0, 0, 1, 1]), JetMoeConfig(**TOY)
    for preset in ("router", "all+router"):
        with pytest.raises(AdapterError, match=r"ties its router rows.*Leave out 'router', or set insist"):
            require_free_routers(tied, preset)
        require_free_routers(tied, preset, insist=True)
        require_free_routers(free, preset)
    require_free_routers(tied, "all")


# --- hot experts


def smallest_covering(load, share):
    """The size of the smallest set that covers the share, by trying all of them."""
    for size in range(len(load) + 1):
        if any(sum(chosen) >= share * sum(load) for chosen in itertools.combinations(load, size)):
            return size
    raise AssertionError


@given(st.lists(st.integers(0, 9), min_size=1, max_size=7), st.integers(1, 20), st.sampled_from(["f4", "f8", "i8"]))
@example([3, 7], 14, "f4")
@example([1] * 7, 20, "f8")
@example([0, 0, 0], 20, "i8")
def test_hot_experts_are_the_smallest_covering_set(counts, twentieths, dtype):
    """Of counts, and of shares in either precision, which rounding must not make one more."""
    total = sum(counts) if dtype != "i8" and sum(counts) else 1
    load = (np.array(counts) / total).astype(dtype) if total > 1 else np.array(counts).astype(dtype)
    hot = hot_experts(load[None, None], twentieths / 20)[0, 0]
    share = Fraction(twentieths, 20)
    assert hot.dtype == bool and hot.sum() == smallest_covering(counts, share)
    assert sum(count for count, one in zip(counts, hot, strict=True) if one) >= share * sum(counts)


def test_hot_experts_of_each_router():
    load = np.array([[[0.5, 0.3, 0.2, 0.0], [0.25, 0.25, 0.25, 0.25]], [[0.0, 0.0, 1.0, 0.0], [0.1, 0.2, 0.3, 0.4]]])
    assert (hot_experts(load, 1.0) == (load > 0)).all()
    half = hot_experts(load, 0.5).astype(int).tolist()
    assert half == [[[1, 0, 0, 0], [1, 1, 0, 0]], [[0, 0, 1, 0], [0, 0, 1, 1]]]  # of equals the first


def changes(wrapper):
    """What stock PEFT would add to the weights: `[E, out, in]`."""
    return wrapper.get_delta_weight("default").detach().view(-1, wrapper.out_features, wrapper.in_features)


@pytest.fixture(scope="module")
def hot_training():
    """Twelve experts of which some are hot, after steps with weight decay; `(adapted, hot, audit before)`."""
    hot = np.zeros((2, 2, 12), dtype=bool)
    hot[0, 0, :5] = hot[0, 1, 11] = hot[1, 0, [2, 7]] = hot[1, 1] = True
    torch.manual_seed(0)
    model = peft.get_peft_model(toy_model(num_local_experts=12, num_experts_per_tok=6), lora_config("hot", r=2)).train()
    mask_gradients(model, hot)
    rows = audit(model)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.05, weight_decay=0.1)
    for _ in range(4):
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, hot, rows


def test_cold_experts_do_not_change_at_all(hot_training):
    model, hot, _ = hot_training
    for name, wrapper in wrappers(model):
        layer = int(name.split(".layers.")[1][0])
        mask = [True] if "kv_proj" in name else hot[layer, int(".mlp." in name)]
        changed = changes(wrapper).flatten(1).any(1)
        assert changed.tolist() == list(mask), name


def test_tensors_of_hot_experts_have_stock_shapes(hot_training, tmp_path):
    model, _, _ = hot_training
    model.save_pretrained(tmp_path)
    stock = peft.get_peft_model(toy_model(num_local_experts=12), lora_config("all", r=2))
    stored, expected = load_file(tmp_path / WEIGHTS), peft.get_peft_model_state_dict(stock)
    assert {name: one.shape for name, one in stored.items()} == {name: one.shape for name, one in expected.items()}


def test_audit_counts_hot_experts_only(hot_training):
    _, hot, rows = hot_training
    trained = {row.part: row.trained for row in rows}
    moa, moe = (int(hot[:, kind].sum()) for kind in (0, 1))
    assert trained["attention experts"] == moa * 2 * ((32 + 16) + (16 + 32))
    assert trained["MLP experts"] == moe * 2 * ((32 + 32) + (16 + 32))
    assert trained["kv_proj"] == 2 * 2 * (32 + 32)


def test_a_bad_gradient_does_not_reach_cold_experts():
    model = peft.get_peft_model(toy_model(), lora_config("experts", r=2))
    mask_gradients(model, np.tile([True, False, False, True], (2, 2, 1)))
    B = next(wrappers(model))[1].lora_B["default"].weight
    (B * torch.tensor(math.inf) * torch.randn_like(B)).sum().backward()
    by_expert = B.grad.view(len(B), -1, 4)
    assert (by_expert[:, :, 1:3] == 0).all() and not by_expert[:, :, [0, 3]].isfinite().any()


# --- adapters on one model


def test_switching_gives_what_each_adapter_gives_alone(saved):
    model = toy_model()
    base, adapters = logits(model), Adapters(model)
    assert adapters.names == [] and adapters.used is None
    for name in ("experts", "attention", "all+router"):
        adapters.load(saved / name, name)
        assert torch.equal(logits(model), base)
    assert adapters.names == ["experts", "attention", "all+router"]
    for name in ("attention", "experts", None, "all+router", "experts", None):
        adapters.use(name)
        assert adapters.used == name
        expected = base if name is None else alone(saved / name)
        torch.testing.assert_close(logits(model), expected, rtol=0, atol=0 if name is None else 5e-6)
        with torch.enable_grad():
            torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=0 if name is None else 5e-6)
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert (alone(saved / "experts") - base).abs().max() > 0.1


def test_ranks_and_scales_of_single_tensors(tmp_path):
    """By `rank_pattern` and `alpha_pattern`, and scaled by the root of the rank."""
    config = lora_config("moa+router", r=4)
    config.target_parameters += ["mlp.input_linear.weight"]
    config.rank_pattern = {"mlp.input_linear.weight": 7, "self_attention.experts.router.layer": 2}
    config.alpha_pattern, config.use_rslora = {"experts.output_linear.weight": 20}, True
    model = peft.get_peft_model(toy_model(), config)
    assert {wrapper.r["default"] for _, wrapper in wrappers(model)} == {2, 4, 7}
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path)
    model = toy_model()
    adapters = Adapters(model)
    adapters.load(tmp_path, "one")
    adapters.use("one")
    torch.testing.assert_close(logits(model), alone(tmp_path), rtol=0, atol=5e-6)


PATH = "model.layers.1."
OTHER_TARGETS = {
    "all-linear": {"target_modules": "all-linear", "target_parameters": None},
    "dropout": {"target_modules": ["kv_proj"], "target_parameters": None, "lora_dropout": 0.5},
    "a pattern": {"target_modules": r".*\.1\..*(kv_proj|mlp\.router\.layer)", "target_parameters": None},
    "one layer": {"target_modules": ["kv_proj"], "target_parameters": None, "layers_to_transform": [1]},
    "all but a module": {"target_modules": ["kv_proj", "layer"], "exclude_modules": ["layers.0.mlp.router.layer"]},
    "full paths": {
        "target_modules": [f"{PATH}self_attention.kv_proj", "model.layers.0.mlp.router.layer"],
        "target_parameters": [f"{PATH}mlp.input_linear.weight", "model.layers.0.mlp.output_linear.weight"],
        "rank_pattern": {f"{PATH}mlp.input_linear.weight": 3, "kv_proj": 6},
        "alpha_pattern": {r"^model\.layers.*kv_proj": 9},
    },
    "all but some tensors": {"target_parameters": [f"{PATH}mlp.input_linear.weight", *MOA_WEIGHTS]},
}


@pytest.mark.parametrize("what", OTHER_TARGETS)
def test_targets_are_the_modules_with_tensors(saved, tmp_path, what):
    """Whatever the configuration calls them, and next to adapters of other targets."""
    config = lora_config("all", r=4, lora_alpha=6)
    for name, value in OTHER_TARGETS[what].items():
        setattr(config, name, value)
    other = peft.get_peft_model(toy_model(), config)
    for name, parameter in other.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    other.save_pretrained(tmp_path)
    model = toy_model()
    adapters = Adapters(model)
    adapters.load(saved / "experts", "experts")
    adapters.load(tmp_path, "other")
    adapters.use("other")
    torch.testing.assert_close(logits(model), logits(other.eval()), rtol=0, atol=5e-6)
    adapters.use("experts")
    torch.testing.assert_close(logits(model), alone(saved / "experts"), rtol=0, atol=5e-6)


def test_loading_changes_nothing_of_the_adapter_in_use(saved):
    model = toy_model()
    adapters = Adapters(model)
    adapters.load(saved / "experts", "one")
    adapters.use("one")
    answer = logits(model)
    adapters.load(saved / "all", "two")
    assert adapters.used == "one" and torch.equal(logits(model), answer)


@pytest.mark.parametrize("names", [("a", "b"), ("lora_A", "weight"), ("llama-3.1 v2", "llama-3.1"), ("", "model")])
def test_adapters_may_have_any_name(saved, names):
    model = toy_model()
    adapters = Adapters(model)
    for name, folder in zip(names, ("experts", "all"), strict=True):
        adapters.load(saved / folder, name)
    for name, folder in zip(names, ("experts", "all"), strict=True):
        adapters.use(name)
        torch.testing.assert_close(logits(model), alone(saved / folder), rtol=0, atol=5e-6)


@pytest.mark.filterwarnings("error:Adapter .* was active", "error:Already found a `peft_config`")
def test_removing_and_loading_again(saved):
    model = toy_model()
    base, adapters = logits(model), Adapters(model)
    adapters.load(saved / "experts", "one")
    adapters.load(saved / "attention", "two")
    adapters.use("one")
    logits(model)
    adapters.remove("two")
    torch.testing.assert_close(logits(model), alone(saved / "experts"), rtol=0, atol=5e-6)
    adapters.remove("one")
    assert adapters.names == [] and adapters.used is None and torch.equal(logits(model), base)
    assert not list(wrappers(model)) and not hasattr(model, "peft_config")
    adapters.load(saved / "all+router", "three")
    adapters.use("three")
    assert adapters.names == ["three"]
    torch.testing.assert_close(logits(model), alone(saved / "all+router"), rtol=0, atol=5e-6)
    for unknown in ("one", "four"):
        for action in (adapters.use, adapters.remove):
            with pytest.raises(AdapterError, match="is not loaded; load it first"):
                action(unknown)
    assert adapters.names == ["three"]


@pytest.mark.parametrize("others", [0, 1])
def test_removing_frees_memory(saved, others):
    model = toy_model()
    adapters = Adapters(model)
    for i in range(others):
        adapters.load(saved / "all", f"other {i}")
    adapters.load(saved / "experts", "one")
    adapters.use("one")
    logits(model)
    low_rank = split_adapters(model.model.layers[0].mlp.input_linear, torch.float32)[1]["weight"]
    held = [weakref.ref(one) for one in model.parameters() if one.shape == (4 * 3, 32)]
    held += [weakref.ref(low_rank.B)]
    assert len(held) == 3
    del low_rank
    adapters.remove("one")
    if others:
        logits(model)  # lays out anew what is left
    gc.collect()
    assert not any(one() is not None for one in held)


def test_one_of_the_same_name_is_replaced(saved):
    model = toy_model()
    adapters = Adapters(model)
    adapters.load(saved / "experts", "one")
    adapters.use("one")
    logits(model)
    adapters.load(saved / "all", "one")
    adapters.use("one")
    assert adapters.names == ["one"]
    torch.testing.assert_close(logits(model), alone(saved / "all"), rtol=0, atol=5e-6)


@torch.no_grad()
def test_absent_tensors_cost_no_compute(saved):
    model = toy_model()
    adapters = Adapters(model)
    adapters.load(saved / "attention", "attention")
    adapters.load(saved / "experts", "experts")
    ranks = {"attention": [5, 5, 5, None, None], "experts": [None, None, None, 3, 3], None: [None] * 5}
    for name, expected in ranks.items():
        adapters.use(name)
        for layer in model.model.layers:
            moa, mlp = layer.self_attention.experts, layer.mlp
            modules = [moa.input_linear, moa.output_linear, layer.self_attention.kv_proj]
            modules += [mlp.input_linear, mlp.output_linear]
            found = [split_adapters(module, torch.float32)[1].get("weight") for module in modules]
            assert [None if one is None else one.A.shape[1] for one in found] == expected


@pytest.mark.parametrize("quantization", [None, "nf4"])
@torch.no_grad()
def test_decoding_equals_prefill(tmp_path, quantization):
    """One token at a time: the chosen weights alone."""
    toy_model(**WIDE).save_pretrained(tmp_path / "base")
    model = load(JetMoeForCausalLM, tmp_path / "base", quantization=quantization, dtype=torch.float32)
    adapted(toy_model(**WIDE), "all+router").save_pretrained(tmp_path / "adapter")
    adapters = Adapters(model)
    adapters.load(tmp_path / "adapter", "one")
    adapters.use("one")
    cache = DynamicCache(config=model.config)
    steps = [model(IDS[:1, i : i + 1], past_key_values=cache).logits for i in range(20)]
    torch.testing.assert_close(torch.cat(steps, dim=1), model(IDS[:1]).logits, rtol=1e-4, atol=1e-4)


def merged_by_peft(model, names):
    """The weights that stock PEFT makes, and no adapter."""
    stock = copy.deepcopy(model)
    stock.base_model.set_adapter(names)
    return stock.merge_and_unload()


@pytest.mark.parametrize("grad", [False, True])
def test_several_active_adapters_add_up(saved, grad):
    model = adapted(toy_model(), "all", seed=1)
    model.add_adapter("other", lora_config("all", r=7, lora_alpha=3))
    for _, wrapper in wrappers(model):
        torch.nn.init.normal_(wrapper.lora_B["other"].weight, std=0.1)
    for names in (["default"], ["other"], ["default", "other"]):
        model.base_model.set_adapter(names)
        with torch.set_grad_enabled(grad):
            result = model(IDS).logits
        torch.testing.assert_close(result, logits(merged_by_peft(model, names)), rtol=1e-5, atol=1e-5)


def test_merged_by_peft_is_not_counted_twice():
    for dtype in (torch.float32, torch.bfloat16):
        model = adapted(toy_model(num_experts_per_tok=4, initializer_range=0.1).to(dtype), "all+router")
        before, merged = logits(model), logits(merged_by_peft(model, ["default"]))
        assert_rounded(before, merged.float(), products=8)
        model.merge_adapter()
        assert torch.equal(logits(model), merged)
        with torch.enable_grad():
            assert torch.equal(model(IDS).logits, merged)
        model.unmerge_adapter()
        assert_rounded(logits(model), before.float(), products=4)


def test_without_adapters_the_model_is_alone():
    model = toy_model()
    base, model = logits(model), adapted(model, "all+router")
    with_adapter = logits(model)
    assert not torch.equal(with_adapter, base)
    for context in (model.disable_adapter(), without_adapters(model)):
        with context:
            assert torch.equal(logits(model), base)
            with torch.enable_grad():
                assert torch.equal(model(IDS).logits, base)
        assert torch.equal(logits(model), with_adapter)


def test_what_is_laid_out_for_answering_follows_every_change(saved):
    model = adapted(toy_model(), "all")
    before = logits(model)
    with rescale_adapter_scale(model, 0.5):
        half = logits(model)
    fresh = adapted(toy_model(), "all", lora_alpha=3)
    assert torch.equal(half, logits(fresh)) and torch.equal(logits(model), before)

    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.05, fused=True)
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    state = peft.get_peft_model_state_dict(model)
    peft.set_peft_model_state_dict(fresh, state)
    for name, wrapper in wrappers(fresh):
        wrapper.scaling["default"] = dict(wrappers(model))[name].scaling["default"]
    after = logits(model)
    assert torch.equal(after, logits(fresh)) and not torch.equal(after, before)

    with torch.no_grad():
        for one in model.parameters():
            one.data = one.data * 1.5
            fresh.get_parameter(next(name for name, other in model.named_parameters() if other is one)).mul_(1.5)
    assert torch.equal(logits(model), logits(fresh))


@pytest.mark.compiles
def test_compiled_step_with_an_adapter(saved):
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    model = toy_model()
    base, _ = decode(model, lambda *args, **kwargs: step(model, *args, **kwargs))
    adapters = Adapters(model)
    adapters.load(saved / "all+router", "one")
    adapters.use("one")
    plain, plain_trace = decode(model, lambda *args, **kwargs: step(model, *args, **kwargs))
    # Without Inductor's 40 seconds of g++; `test_find.py` generates code for an adapter.
    compiled, compiled_trace = decode(model, compiled_step(model, backend="aot_eager"))
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
    assert (plain_trace.experts == compiled_trace.experts).all() and (plain - base).abs().max() > 0.1
    assert torch._dynamo.utils.counters["graph_break"] == {}
    torch.compiler.reset()


# --- adapters that are not what they seem


def setting(**values):
    def change(folder):
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**config, **values}))

    return change


def writing(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def tensors(change):
    def rewrite(folder):
        stored = load_file(folder / WEIGHTS)
        change(stored)
        save_file(stored, folder / WEIGHTS)

    return rewrite


def pickled_instead(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def of_another_model(folder):
    adapted(toy_model(hidden_size=48), "all").save_pretrained(folder)


def renamed_modules(folder):
    stored = load_file(folder / WEIGHTS)
    save_file({name.replace("mlp.input_linear", "mlp.q_proj"): one for name, one in stored.items()}, folder / WEIGHTS)
    setting(target_modules=".*")(folder)


FIRST = "base_model.model.model.layers.0.mlp.input_linear.lora_A.weight"
HOSTILE = {
    "no configuration": (lambda folder: (folder / CONFIG).unlink(), f"holds no {CONFIG}; give the folder"),
    "no folder": (lambda folder: shutil.rmtree(folder), f"holds no {CONFIG}; give the folder"),
    "half a configuration": (writing(CONFIG, b'{"peft_type": "LORA", "r": '), "is damaged .*; save or download"),
    "bytes for a configuration": (writing(CONFIG, b"\xff\xfe\x00\x01"), "is damaged .*; save or download"),
    "a deep configuration": (writing(CONFIG, b"[" * 100_000), "is damaged .*; save or download"),
    "a list for a configuration": (writing(CONFIG, b'["LORA"]'), "is not a LoRA adapter; only LoRA"),
    "another type": (setting(peft_type="IA3"), "is not a LoRA adapter; only LoRA"),
    "no type": (setting(peft_type=None), "is not a LoRA adapter; only LoRA"),
    "dora": (setting(use_dora=True), "uses use_dora, which is not supported; train it without, or merge"),
    "bias": (setting(bias="all"), "uses bias, which is not supported"),
    "lora bias": (setting(lora_bias=True), "uses lora_bias, which is not"),
    "whole modules": (setting(modules_to_save=["lm_head"]), "uses modules_to_save, which is not"),
    "layers twice": (setting(layer_replication=[[0, 2], [0, 2]]), "uses layer_replication, which is not"),
    "awoken by tokens": (setting(alora_invocation_tokens=[1]), "uses alora_invocation_tokens, which is not"),
    "several": (setting(use_dora=True, bias="all"), "uses use_dora, bias, which is not"),
    "weights that change with the adapter": (
        setting(init_lora_weights="pissa"),
        "uses init_lora_weights, which is not",
    ),
    "another model's modules": (
        tensors(lambda stored: stored.update({FIRST.replace("input_linear", "q_proj"): stored[FIRST].clone()})),
        "^1 of .*, such as .*q_proj",
    ),
    "modules of another model by a pattern": (
        renamed_modules,
        "of another shape than this model's, such as .*mlp.q_proj",
    ),
    "a number for modules": (setting(target_modules=5), "invalid value for target_modules"),
    "lists for modules": (setting(target_modules=[["kv_proj"]]), "invalid value for target_modules"),
    "rank 0": (setting(r=0), f"ranks must be whole numbers from 1 to {MAX_RANK}, not .0"),
    "rank -4": (setting(r=-4), "ranks must be whole numbers"),
    "rank 10**9": (setting(r=10**9), r"ranks must be whole numbers .*1000000000"),
    "half a rank": (setting(r=2.5), "ranks must be whole numbers"),
    "no rank": (setting(r=None), "ranks must be whole numbers"),
    "a pattern's rank 10**9": (setting(rank_pattern={"mlp.input_linear.weight": 10**9}), "ranks must be whole numbers"),
    "a list of ranks": (setting(rank_pattern=[4]), "invalid value for rank_pattern"),
    "an endless pattern": (setting(alpha_pattern={"(((a*)*)*)*b": 4}), "invalid value for alpha_pattern"),
    "a word for alpha": (setting(lora_alpha="much"), "invalid value for lora_alpha"),
    "no number for alpha": (setting(lora_alpha=math.nan), "invalid value for lora_alpha"),
    "a word for a pattern's alpha": (setting(alpha_pattern={"kv_proj": "much"}), "invalid value for alpha_pattern"),
    "another task": (setting(task_type="DANCE"), "invalid value for task_type"),
    "another rank than its tensors'": (setting(r=3), "are missing, unexpected or of another shape .* Pick the model"),
    "fewer targets than tensors": (setting(target_modules=[]), "are missing, unexpected or of another shape"),
    "no targets": (setting(target_modules=None, target_parameters=None), "changes layers that JetMoE does not have"),
    "more targets than tensors": (setting(target_modules=["kv_proj", "router.layer"]), "are missing, unexpected"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), f"holds no {WEIGHTS}; other formats can run code"),
    "pickled weights": (pickled_instead, f"holds no {WEIGHTS}; other formats can run code"),
    "empty weights": (writing(WEIGHTS, b""), "is damaged .*; save or download"),
    "damaged weights": (writing(WEIGHTS, b"\xff" * 4096), "is damaged .*; save or download"),
    "half the weights": (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1000]),
        "is damaged .*; save or download",
    ),
    "another model's": (of_another_model, "of another shape than this model's, such as base_model.*Pick the model"),
    "a surplus tensor": (tensors(lambda stored: stored.update(evil=torch.zeros(3))), "^1 of .*, such as evil"),
    "a missing tensor": (tensors(lambda stored: stored.pop(FIRST)), f"^1 of .*, such as {FIRST}"),
    "a tensor of no shape": (tensors(lambda stored: stored.update({FIRST: torch.tensor(1.0)})), "^1 of .*, such as"),
    "tensors of a layer that is not there": (
        tensors(lambda stored: stored.update({FIRST.replace("layers.0", "layers.7"): torch.zeros(16, 32)})),
        "^1 of .*, such as .*layers.7",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_adapters_are_refused_in_a_sentence(saved, tmp_path, what):
    """Also under the name of one that is in use, which stays."""
    change, sentence = HOSTILE[what]
    model = toy_model()
    adapters = Adapters(model)
    base, folder = logits(model), tmp_path / "adapter"
    shutil.copytree(saved / "all", folder)
    change(folder)
    with pytest.raises(AdapterError, match=sentence):
        adapters.load(folder, "bad")
    assert adapters.names == [] and torch.equal(logits(model), base)
    adapters.load(saved / "experts", "good")
    adapters.use("good")
    answer = logits(model)
    for name in ("bad", "good"):
        with pytest.raises(AdapterError, match=sentence) as raised:
            adapters.load(folder, name)
        assert len(str(raised.value)) < 400 and "\n" not in str(raised.value)
        assert adapters.names == ["good"] and adapters.used == "good" and torch.equal(logits(model), answer)
    adapters.use(None)
    assert torch.equal(logits(model), base)


# --- audit

DTYPES = [torch.float32, torch.bfloat16]
# Plain or doubly quantized; bf16 is in tiles where the processor multiplies them.
FOUR_BIT = ["nf4", "double nf4"]


def toy_in(folder, dtype, quantized):
    """Every expert is picked, so that no rounding picks another."""
    changes = {"num_experts_per_tok": 4, "initializer_range": 0.1}
    if quantized:
        return four_bit_toy(folder, dtype, double="double" in quantized, **changes)
    return toy_model(**WIDE, **changes).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("quantized", [None, *FOUR_BIT])
def test_audit_counts_what_is_there_and_what_trains(tmp_path, dtype, quantized):
    total = sum(one.numel() for one in toy_model(**WIDE).parameters())
    model = adapted(toy_in(tmp_path, dtype, quantized), "attention+router", r=3)
    rows = {row.part: row for row in audit(model)}
    assert list(rows) == [
        "attention experts",
        "MLP experts",
        "kv_proj",
        "routers",
        "norms and biases",
        "embeddings and head",
    ]
    assert sum(row.parameters for row in rows.values()) == total
    assert rows["MLP experts"].parameters == 2 * 4 * (64 * 128 + 64 * 64)
    assert sum(row.trained for row in rows.values()) == sum(
        one.numel() for one in model.parameters() if one.requires_grad
    )
    assert [row.rank for row in rows.values()] == [3, 0, 3, 3, 0, 0]
    assert rows["MLP experts"].trained == rows["embeddings and head"].trained == 0
    name = str(dtype).removeprefix("torch.")
    in_four_bits = ("attention experts", "MLP experts", "kv_proj") if quantized else ()
    for part, row in rows.items():
        assert (row.dtype, row.four_bit) == (("nf4", 1.0) if part in in_four_bits else (name, 0.0))


def test_audit_of_one_of_several_adapters(saved):
    model = toy_model()
    adapters = Adapters(model)
    adapters.load(saved / "attention", "attention")
    adapters.load(saved / "experts", "experts")
    adapters.use("experts")
    assert {row.part: row.trained for row in audit(model)} == dict.fromkeys((row.part for row in audit(model)), 0)


def test_audit_of_a_model_without_adapters():
    model = toy_model()
    assert all(row.trained == row.parameters and row.rank == 0 for row in audit(model))
    model.requires_grad_(False)
    assert all(row.trained == 0 for row in audit(model))


def test_audit_of_a_head_that_trains_whole():
    torch.manual_seed(0)
    model = JetMoeForSequenceClassification(JetMoeConfig(**TOY, num_labels=3))
    total = sum(one.numel() for one in model.parameters())
    model = peft.get_peft_model(model, lora_config("experts", task_type="SEQ_CLS"))
    rows = {row.part: row for row in audit(model)}
    assert sum(row.parameters for row in rows.values()) == total
    assert rows["score head"].trained == 3 * 32


# --- merging


PARTS = {
    "attention experts": [f"{name}.weight" for name in MOA],
    "MLP experts": [f"{name}.weight" for name in MOE],
    "kv_proj": ["kv_proj.weight"],
    "routers": ["router.layer.weight"],
}


@torch.no_grad()
def plain_weights(model):
    """Every weight by its name without PEFT's parts, in fp32."""
    weights = {}
    for name, parameter in model.named_parameters():
        plain = name.replace("base_layer.", "").removeprefix("base_model.model.")
        if isinstance(parameter, NF4Tensor):
            weights[plain] = parameter.dequantize(torch.float32)
        elif getattr(parameter, "quant_state", None) is not None:
            weights[plain] = bnb.dequantize_4bit(parameter.data, parameter.quant_state).float()
        elif ".lora_" not in name:
            weights[plain] = parameter.float().clone()
    return weights


@torch.no_grad()
def added_weights(model):
    """What the adapter adds, in fp32, by the name of the weight."""
    added = {}
    for name, wrapper in wrappers(model):
        A, B = wrapper.lora_A["default"].weight, wrapper.scaling["default"] * wrapper.lora_B["default"].weight
        E = getattr(wrapper, "num_experts", 1)
        change = torch.stack([B.view(len(B), -1, E)[:, :, e] @ A.view(E, -1, A.shape[1])[e] for e in range(E)])
        added[f"{name.removeprefix('base_model.model.')}.weight"] = change if E > 1 else change[0]
    return added


def as_stored(exact, like, dtype):
    """Rounded as the parameter `like` rounds, by itself."""
    if isinstance(like, NF4Tensor):
        parts = quantize(exact.to(dtype), like.parts.nested_absmax is not None).parts
        return (parts.tile() if like.parts.tiled else parts).dequantize(torch.float32)
    if getattr(like, "quant_state", None) is not None:
        double = like.quant_state.nested
        codes, state = bnb.quantize_4bit(exact.to(dtype), blocksize=64, quant_type="nf4", compress_statistics=double)
        return bnb.dequantize_4bit(codes, state).float()
    return exact.to(dtype).float()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("quantized", [None, *FOUR_BIT])
def test_merging(tmp_path, dtype, quantized):
    """The weights are base and adapter within rounding, and the figures say what rounding lost."""
    model = adapted(toy_in(tmp_path, dtype, quantized), "all+router")
    with_adapter, before, added = logits(model), plain_weights(model), added_weights(model)
    lost = merge(model)
    after = plain_weights(model)
    assert not list(wrappers(model)) and after.keys() == before.keys() and len(added) == 2 * 7
    inner = model.get_base_model()
    for name, weight in after.items():
        if name not in added:
            assert torch.equal(weight, before[name])
            continue
        expected = as_stored(before[name] + added[name], inner.get_parameter(name), dtype)
        # Sums in another order, rounded: with double quantization, another scale changes a whole block.
        assert ((weight - expected).abs() > 1e-6).float().mean() < (5e-3 if quantized == "double nf4" else 1e-3), name
    assert lost.keys() == PARTS.keys()
    for part, endings in PARTS.items():
        names = [name for name in added if name.endswith(tuple(endings))]
        errors = sum(float((after[name] - before[name] - added[name]).square().sum()) for name in names)
        sizes = sum(float(added[name].square().sum()) for name in names)
        assert lost[part] == pytest.approx(math.sqrt(errors / sizes), rel=1e-3, abs=1e-6)
    if quantized:
        assert 0.05 < lost["MLP experts"] < 1 and lost["routers"] < 0.05
    elif dtype == torch.bfloat16:
        assert_rounded(logits(model), with_adapter.float(), products=8)
    else:
        torch.testing.assert_close(logits(model), with_adapter, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("quantized", FOUR_BIT)
def test_merged_4bit_weights_stay_so(tmp_path, dtype, quantized):
    """And answer, save and load as such; those in tiles too."""
    model = toy_in(tmp_path / "base", dtype, quantized)
    layout = [(name, repr(one)) for name, one in model.named_parameters() if isinstance(one, NF4Tensor)]
    tiles = [name for name, module in model.named_modules() if getattr(module, "tiles", None)]
    assert len(layout) == 8 and len(tiles) == 2 * (dtype == torch.bfloat16 and nf4_cpu.supported())
    base = logits(model)  # a plain forward leaves nothing behind that a merge would miss
    merge(adapted(model, "all"))
    assert layout == [(name, repr(one)) for name, one in model.named_parameters() if isinstance(one, NF4Tensor)]
    assert tiles == [name for name, module in model.named_modules() if getattr(module, "tiles", None)]
    merged = logits(model)
    assert (merged - base).abs().max() > 0.1
    if dtype == torch.float32:
        torch.testing.assert_close(merged, logits(dequantized(model)), rtol=1e-4, atol=1e-5)
    else:
        assert_rounded(merged, logits(dequantized(model).float()), products=8)
    model.save_pretrained(tmp_path / "merged")
    again = load(JetMoeForCausalLM, tmp_path / "merged", dtype=dtype)
    assert [repr(one) for _, one in again.named_parameters()] == [repr(one) for _, one in model.named_parameters()]
    torch.testing.assert_close(logits(again), merged, rtol=0, atol=0)


def test_a_merged_model_takes_adapters_again(saved):
    model = adapted(toy_model(), "all")
    expected = logits(model)
    merge(model)
    inner = model.get_base_model()
    adapters = Adapters(inner)
    assert torch.equal(logits(model), logits(inner))
    torch.testing.assert_close(logits(inner), expected, rtol=1e-5, atol=1e-5)
    adapters.load(saved / "experts", "one")
    adapters.use("one")
    assert adapters.names == ["one"] and (logits(inner) - expected).abs().max() > 0.1


def test_an_adapter_that_is_off_is_not_merged(saved):
    model = toy_model()
    base, adapters = logits(model), Adapters(model)
    adapters.load(saved / "all", "one")
    assert merge(model) == {} and torch.equal(logits(model), base) and not list(wrappers(model))


# --- torch.compile and autocast


@pytest.mark.compiles
def test_a_compiled_model_follows_its_adapter():
    """Outputs and gradients: active, disabled, and after writes that tensors don't count."""
    torch.compiler.reset()
    model = adapted(toy_model(num_hidden_layers=1), "all+router")
    compiled = torch.compile(model, backend="aot_eager")
    with_adapter = logits(model)
    torch.testing.assert_close(logits(compiled), with_adapter, rtol=1e-4, atol=1e-4)
    with model.disable_adapter():
        torch.testing.assert_close(logits(compiled), logits(toy_model(num_hidden_layers=1)), rtol=1e-4, atol=1e-4)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.mul_(1.5)
    assert (logits(model) - with_adapter).abs().max() > 0.1
    torch.testing.assert_close(logits(compiled), logits(model), rtol=1e-4, atol=1e-4)
    model.train()
    gradients = []
    for forward in (model, compiled):
        model.zero_grad()
        forward(IDS, labels=IDS).loss.backward()
        gradients.append({name: one.grad for name, one in model.named_parameters() if one.grad is not None})
    expected, found = gradients
    assert len(found) == len(expected) == 2 * 7
    for name, gradient in expected.items():
        tolerance = 1e-4 * float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=tolerance, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains_every_factor_and_keeps_routers_in_fp32(dtype):
    model = adapted(toy_model(initializer_range=0.05), "all+router").train()
    plain = model(IDS, labels=IDS, output_router_logits=True)
    with torch.autocast("cpu", dtype=dtype):
        output = model(IDS, labels=IDS, output_router_logits=True)
    output.loss.backward()
    assert output.logits.dtype == dtype and {one.dtype for one in output.router_logits} == {torch.float32}
    # The first router reads tokens that are not rounded yet.
    torch.testing.assert_close(output.router_logits[0], plain.router_logits[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.loss, plain.loss, rtol=2e-2, atol=0)
    trained = [one for one in model.parameters() if one.requires_grad]
    assert len(trained) == 28 and all(one.grad.isfinite().all() and one.grad.any() for one in trained)


def test_hooks_on_experts_with_an_adapter_see_what_peft_computes():
    """They go through PEFT's own forward, with the same result; in 4 bits they are refused."""
    model, seen = adapted(toy_model(), "experts"), []
    expected = logits(model)
    wrapper = model.base_model.model.model.layers[0].mlp.input_linear
    hook = wrapper.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    assert seen == [(2 * IDS.numel(), 32)]
    hook.remove()
    wrapper.base_layer.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    assert torch.equal(logits(model), expected) and len(seen) == 2


def test_hooks_on_4bit_experts_with_an_adapter_are_refused(tmp_path):
    model = adapted(four_bit_toy(tmp_path, torch.float32), "experts")
    expected = logits(model)
    wrapper = model.base_model.model.model.layers[0].mlp.input_linear
    hook = wrapper.register_forward_hook(lambda *args: None)
    with pytest.raises(AdapterError, match=r"because its LoRA layer has hooks.*remove the hooks, or load .* 16 bits"):
        logits(model)
    hook.remove()
    assert torch.equal(logits(model), expected)
    with pytest.raises(NotImplementedError, match=r"jetmoe.adapters.merge.merge\(model\)"):
        model.merge_and_unload()
