"""What OLMoE has of its own: its configuration, both layouts of its checkpoints, gates, and several weights of one
module that adapters change. That it computes what transformers' OLMoE computes is in `test_parity.py` and
`test_lora_parity.py`."""

import re
import shutil

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.olmoe.configuration_olmoe import OlmoeConfig as StockConfig

from jetmoe import OlmoeConfig, OlmoeForCausalLM, RoutingRecorder
from jetmoe.adapters.audit import audit
from jetmoe.adapters.hot_experts import mask_gradients
from jetmoe.adapters.merge import merge
from jetmoe.adapters.switching import Adapters
from jetmoe.decode import compiled_step, step
from jetmoe.loading.checkpoint import CheckpointError
from jetmoe.loading.convert import convert
from jetmoe.loading.load import load, quantized_share
from jetmoe.lora import AdapterError, lora_config
from jetmoe.low_rank import split_adapters
from jetmoe.nf4.tensor import NF4Tensor
from tests.builders.decoding import decode
from tests.builders.four_bits import WIDE, assert_rounded
from tests.builders.toy_model import toy_model

IDS = torch.randint(3, 99, (2, 20), generator=torch.Generator().manual_seed(0))
SIZES = {**WIDE, "num_experts": 8, "num_experts_per_tok": 3, "initializer_range": 0.1}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
QKVO = ["q_proj", "k_proj", "v_proj", "o_proj"]


def toy(**changes):
    return toy_model(family="olmoe", **{**SIZES, **changes})


@torch.no_grad()
def logits(model):
    return model(IDS).logits


# --- configuration


def test_fields_and_defaults_are_those_of_transformers():
    ours, stock = OlmoeConfig().to_dict(), StockConfig().to_dict()
    own = {"head_dim", "z_loss_coef", "score_temperature", "score_prompt", "score_with_tfidf"}
    assert {name: ours[name] for name in ours.keys() - own} == stock
    assert OlmoeConfig().head_dim == 128 and OlmoeConfig().num_local_experts == 64


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_experts": 4, "num_experts_per_tok": 5}, "num_experts_per_tok is 5, more than the 4 of num_experts"),
        ({"num_experts": 257}, "num_experts is 257; routing traces allow at most 256"),
        ({"num_attention_heads": 3}, "num_attention_heads is 3, not a multiple of num_key_value_heads, which is 2"),
        ({"hidden_size": 30}, "hidden_size is 30, but 4 heads of 7 channels have 28"),
        ({"num_attention_heads": 0}, "hidden_size is 64, but 0 heads of 64 channels have 0"),
        ({"num_experts": 0}, "num_experts is 0, it must be an integer of at least 1"),
        ({"clip_qkv": -1.0}, "clip_qkv is -1.0, it must be above 0 or null"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "OLMoE supports default, linear"),
    ],
)
def test_contradictions_are_named(changes, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        toy(**changes)


# --- checkpoints


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A checkpoint as on the hub: a file of three tensors for each expert."""
    folder = tmp_path_factory.mktemp("released")
    toy().save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture(scope="module")
def fused(released, tmp_path_factory):
    """The same weights under the names that transformers has in memory."""
    folder = tmp_path_factory.mktemp("fused")
    shutil.copy(released / "config.json", folder)
    model = AutoModelForCausalLM.from_pretrained(released)
    save_file(dict(model.state_dict()), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def names_of(folder):
    return {name for file in folder.glob("*.safetensors") for name in load_file(file)}


def test_we_save_the_released_layout(released, fused):
    layer = "model.layers.1.mlp.experts"
    assert {f"{layer}.7.gate_proj.weight", f"{layer}.0.down_proj.weight"} <= names_of(released)
    assert f"{layer}.gate_up_proj" in names_of(fused) and f"{layer}.gate_up_proj" not in names_of(released)


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_both_layouts_are_one_model(released, fused, quantization):
    expected = logits(toy().bfloat16() if quantization is None else load(OlmoeForCausalLM, fused, quantization="nf4"))
    for folder in (released, fused):
        options = {"quantization": quantization, "dtype": torch.bfloat16}
        for model in (
            load(AutoModelForCausalLM, folder, **options),
            AutoModelForCausalLM.from_pretrained(folder, **{k: v for k, v in options.items() if v}).eval(),
        ):
            assert type(model) is OlmoeForCausalLM and torch.equal(logits(model), expected)


def test_experts_and_projections_are_in_4_bits_and_nothing_else(released):
    model = load(AutoModelForCausalLM, released, quantization="nf4", dtype=torch.float32)
    for name, parameter in model.named_parameters():
        is_small = isinstance(parameter, NF4Tensor) or hasattr(parameter, "quant_state")
        assert is_small == name.removesuffix(".weight").endswith((*EXPERTS, *QKVO)), name
    assert quantized_share(model) > 0.8


def test_saved_and_converted_in_4_bits_it_comes_back(released, tmp_path):
    model = load(AutoModelForCausalLM, released, quantization="nf4")
    model.save_pretrained(tmp_path / "saved")
    convert(released, tmp_path / "converted")
    for folder in (tmp_path / "saved", tmp_path / "converted"):
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), logits(model))


def test_a_new_head_classifies(released):
    model = load(AutoModelForSequenceClassification, released, quantization="nf4")
    assert logits(model).shape == (2, 2)


def test_biases_of_projections_count_in_4_bits(tmp_path):
    model = toy(attention_bias=True)
    for layer in model.model.layers:
        for name in QKVO:
            torch.nn.init.normal_(getattr(layer.self_attn, name).bias)
    model.save_pretrained(tmp_path)
    for dtype in (torch.bfloat16, torch.float32):
        quantized = load(AutoModelForCausalLM, tmp_path, quantization="nf4", dtype=dtype)
        expected = logits(quantized)
        for layer in quantized.model.layers:
            layer.self_attn.v_proj.bias.data.zero_()
        assert (logits(quantized) - expected).abs().max() > 0.1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda names: names.pop("model.layers.0.mlp.experts.3.up_proj.weight"), "lacks model.layers.0.*3.up_proj"),
        (
            lambda names: [names.pop(name) for name in list(names) if ".experts.7." in name],
            r"gate_up_proj is \[7, 128, 64\] instead of \[8, 128, 64\]",
        ),
        (
            lambda names: names.update({"model.layers.0.mlp.experts.2.down_proj.weight": torch.zeros(64, 32)}),
            r"The experts of model.layers.0.mlp.experts differ in shape",
        ),
    ],
)
def test_experts_that_are_not_there_are_named(released, tmp_path, change, words):
    toy().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=words):
        load(AutoModelForCausalLM, tmp_path)


# --- routing


@pytest.mark.parametrize("normed", [False, True])
def test_the_trace_holds_the_gates_that_the_model_used(normed):
    model = toy(norm_topk_prob=normed)
    with torch.no_grad(), RoutingRecorder(model, 64) as recorder:
        router_logits = model(IDS, output_router_logits=True).router_logits
    trace = recorder.trace(IDS.flatten().tolist(), ["t"] * 40, True, with_probs=True)
    probs = torch.stack(router_logits).softmax(-1)  # [L, T, E]
    gates, experts = probs.topk(3)
    gates = gates / gates.sum(-1, keepdim=True) if normed else gates
    assert trace.kinds == ("MoE",) and trace.experts.shape == (2, 1, 40, 3)
    assert np.array_equal(trace.experts[:, 0], experts)
    np.testing.assert_allclose(trace.gates[:, 0], gates, atol=1e-3)
    np.testing.assert_allclose(trace.probs[:, 0], probs, atol=1e-3)
    sums = trace.gates.sum(-1, dtype=np.float32)
    assert np.allclose(sums, 1, atol=2e-3) if normed else (sums < 0.95).all()


# --- adapters


def adapted(model, config, seed=1):
    """With factors that are not zero."""
    result = peft.get_peft_model(model, config)
    torch.manual_seed(seed)
    for name, parameter in result.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return result


def preset(name, **options):
    return lora_config(name, **{"r": 4, "lora_alpha": 6, "family": "olmoe", **options})


CONFIGS = {
    "all": preset("all"),
    "attention": preset("attention", r=2),
    "all+router": preset("all+router", r=3),
    "one of two weights": peft.LoraConfig(r=3, target_modules=[], target_parameters=[EXPERTS[1]]),
    "the other": peft.LoraConfig(r=2, target_modules=[], target_parameters=[EXPERTS[0]]),
    "a weight of one layer": peft.LoraConfig(
        r=2, target_modules=[], target_parameters=[f"model.layers.1.{EXPERTS[1]}"]
    ),
    "all-linear": peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    for seed, (name, config) in enumerate(CONFIGS.items()):
        adapted(toy(), config, seed).save_pretrained(folder / name)
    return folder


def test_presets_are_of_the_family():
    assert lora_config("all", family="olmoe").target_modules == set(QKVO)
    with pytest.raises(AdapterError, match="OLMoE has no preset moa; choose from attention, experts, all"):
        lora_config("moa", family="olmoe")
    with pytest.raises(AdapterError, match="no family 'mixtral'; choose from jetmoe, olmoe"):
        lora_config("all", family="mixtral")


def test_each_adapter_answers_as_in_peft_alone(saved):
    """Also those that change one of two weights of a module, whose factors have other names beside the others."""
    model = toy()
    adapters, base = Adapters(model), logits(model)
    for name in CONFIGS:
        adapters.load(saved / name, name)
    for name in CONFIGS:
        adapters.use(name)
        expected = logits(peft.PeftModel.from_pretrained(toy(), saved / name))
        torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5, msg=name)
        assert (expected - base).abs().max() > 1e-3
    adapters.use("one of two weights")
    assert split_adapters(model.model.layers[0].mlp.experts, torch.float32)[1].keys() == {"down_proj"}
    adapters.use(None)
    assert torch.equal(logits(model), base)


def test_adapters_of_the_other_family_are_refused(saved, tmp_path):
    peft.get_peft_model(toy_model(**WIDE), lora_config("all")).save_pretrained(tmp_path)
    for model, folder in ((toy(), tmp_path), (toy_model(**WIDE), saved / "all")):
        with pytest.raises(AdapterError, match="Pick the model that the adapter was trained on"):
            Adapters(model).load(folder, "foreign")


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_merged_it_answers_as_adapted(released, saved, quantization):
    model = load(AutoModelForCausalLM, released, quantization=quantization, dtype=torch.float32)
    base = logits(model)
    adapters = Adapters(model)
    adapters.load(saved / "all+router", "one")
    adapters.use("one")
    expected = logits(model)
    lost = merge(model)
    assert lost.keys() == {"attention projections", "MLP experts", "routers"}
    change = (expected - base).abs().max()
    assert (logits(model) - expected).abs().max() < (1e-4 if quantization is None else 0.5) * change


def test_the_audit_counts_every_part():
    rows = {row.part: row for row in audit(adapted(toy(), preset("all+router")))}
    experts, gate = rows["MLP experts"], rows["routers"]
    assert experts.parameters == 2 * 8 * 3 * 64 * 64 and experts.rank == 4
    assert experts.trained == 2 * 4 * 8 * ((64 + 128) + (64 + 64)) and gate.trained == 2 * 4 * (64 + 8)
    assert rows["norms and biases"].trained == 0 and sum(row.parameters for row in rows.values()) == sum(
        one.numel() for one in toy().parameters()
    )


def test_hot_experts_alone_are_trained():
    model = toy()
    config = preset("hot")
    tuned = peft.get_peft_model(model, config).train()
    hot = np.zeros((2, 1, 8), bool)
    hot[0, 0, 2] = hot[1, 0, 5] = True
    mask_gradients(model, hot)
    tuned(IDS, labels=IDS).loss.backward()
    for layer, expert in ((0, 2), (1, 5)):
        for name, parameter in tuned.named_parameters():
            if f".{layer}.mlp.experts" in name and "lora_B" in name:
                by_expert = parameter.grad.view(len(parameter), -1, 8).abs().sum((0, 1))  # [E]
                assert by_expert.nonzero().flatten().tolist() == [expert]


@pytest.mark.compiles
def test_a_compiled_step_in_4_bits_with_an_adapter(released, saved):
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    model = load(AutoModelForCausalLM, released, quantization="nf4")
    adapters = Adapters(model)
    adapters.load(saved / "all+router", "one")
    adapters.use("one")
    plain, trace = decode(model, lambda *args, **kwargs: step(model, *args, **kwargs))
    # Without Inductor's 40 seconds of g++; tests of JetMoE generate code.
    compiled, _ = decode(model, compiled_step(model, backend="aot_eager"))
    assert_rounded(compiled, plain, products=4)
    assert torch._dynamo.utils.counters["graph_break"] == {} and trace.experts.shape == (2, 1, 15, 3)
    torch.compiler.reset()
