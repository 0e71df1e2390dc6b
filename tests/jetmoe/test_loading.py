"""Checkpoints on disk: loading in 16 and in 4 bits, saving, converting, and every way in which files can be wrong."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import bitsandbytes.functional as bnb
import huggingface_hub.constants
import pytest
import torch
from accelerate.hooks import add_hook_to_module
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from jetmoe import JetMoeForCausalLM, JetMoeForSequenceClassification
from jetmoe.experts.experts import Experts, LinearExperts
from jetmoe.loading import devices
from jetmoe.loading.checkpoint import INDEX, CheckpointError, Stored, read_model_config, stored_tensors
from jetmoe.loading.convert import convert
from jetmoe.loading.devices import RunOn
from jetmoe.loading.load import load, quantized_share
from jetmoe.loading.slots import slots_of
from jetmoe.nf4 import cpu as nf4_cpu
from jetmoe.nf4 import parts as nf4
from jetmoe.nf4.tensor import NF4Tensor, quantize
from studio.backend.bench import shapes
from tests.builders.toy_model import toy_model

WIDE = {"hidden_size": 64, "intermediate_size": 64, "kv_channels": 32, "num_hidden_layers": 3}
IDS = torch.randint(3, 99, (2, 20), generator=torch.Generator().manual_seed(0))
LAYER = "model.layers.1"


def noisy_toy(**changes):
    """Every parameter is random, so that none can be forgotten unseen."""
    model = toy_model(**{**WIDE, **changes}).requires_grad_(False)
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    return model.bfloat16()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint in one file."""
    folder = tmp_path_factory.mktemp("whole")
    noisy_toy().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer.model"):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """The same checkpoint in several files."""
    folder = tmp_path_factory.mktemp("shards")
    noisy_toy().save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture
def broken(shards, tmp_path, monkeypatch):
    """A copy of the shards to break, of which no weight may be read."""
    monkeypatch.setattr(Stored, "read", lambda *args: pytest.fail("a weight was read"))
    return shutil.copytree(shards, tmp_path / "broken")


def load_4bit(folder, **arguments):
    return load(JetMoeForCausalLM, folder, quantization="nf4", **arguments)


@torch.no_grad()
def logits(model, ids=IDS):
    return model(ids).logits


def refusal(folder, model_class=JetMoeForCausalLM, **arguments):
    with pytest.raises(CheckpointError) as raised:
        load(model_class, folder, **arguments)
    return str(raised.value)


# --- what is loaded


def test_16_bits_are_those_of_from_pretrained(whole, shards):
    expected = JetMoeForCausalLM.from_pretrained(whole, dtype=torch.bfloat16)
    for folder in (whole, shards):
        model = load(JetMoeForCausalLM, folder)
        assert not model.training and not any(p.requires_grad for p in model.parameters())
        assert model.lm_head.weight is model.model.embed_tokens.weight
        state = model.state_dict()
        assert state.keys() == expected.state_dict().keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.state_dict().items())
        assert torch.equal(logits(model), logits(expected))
    assert load(JetMoeForCausalLM, whole, dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("double", [False, True])
def test_4_bits_are_the_quantized_16_bits(whole, shards, double):
    plain = load(JetMoeForCausalLM, whole)
    for folder in (whole, shards):
        model = load_4bit(folder, double_quantization=double)
        for name, module in model.named_modules():
            if isinstance(module, LinearExperts):
                expected = quantize(plain.get_submodule(name).weight, double).parts
                expected = expected.tile() if nf4_cpu.supported() else expected
                assert torch.equal(module.weight.parts.codes, expected.codes)
                assert torch.equal(module.weight.parts.absmax, expected.absmax)
            elif name.endswith(".kv_proj"):
                weight = plain.get_submodule(name).weight.detach()
                codes, state = bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=double)
                assert torch.equal(module.weight.data, codes)
                assert torch.equal(module.weight.quant_state.absmax, state.absmax)


def test_only_experts_and_key_value_projections_are_quantized(whole):
    model = load_4bit(whole, dtype=torch.float32)
    plain = load(JetMoeForCausalLM, whole, dtype=torch.float32)
    kept = set()
    for name, parameter in model.named_parameters():
        if isinstance(parameter, NF4Tensor):
            assert re.search(r"(experts|mlp)\.(input|output)_linear\.weight$", name)
        elif hasattr(parameter, "quant_state"):
            assert name.endswith("kv_proj.weight") and parameter.dtype == torch.uint8
        else:
            assert parameter.dtype == torch.float32 and torch.equal(parameter, plain.get_parameter(name))
            kept.add(name.removeprefix(f"{LAYER}."))
    assert {"mlp.router.layer.weight", "mlp.bias", "input_layernorm.weight", "model.embed_tokens.weight"} <= kept
    quantized = sum(p.numel() for name, p in plain.named_parameters() if re.search("_linear|kv_proj", name))
    assert quantized_share(model) == pytest.approx(quantized / sum(p.numel() for p in plain.parameters()))


@pytest.mark.parametrize("double", [False, True])
def test_memory_footprint_counts_what_is_stored(whole, double):
    plain = load(JetMoeForCausalLM, whole)
    assert plain.get_memory_footprint() == 2 * sum(p.numel() for p in plain.parameters())
    experts = sum(m.weight.numel() for m in plain.modules() if isinstance(m, LinearExperts))
    projections = sum(layer.self_attention.kv_proj.weight.numel() for layer in plain.model.layers)
    others = sum(p.numel() for p in plain.parameters()) - experts - projections

    rows = load_4bit(whole, dtype=torch.float32, double_quantization=double).get_memory_footprint()
    scales = 1 / 64 if double else 4 / 64
    assert rows == pytest.approx((0.5 + scales) * (experts + projections) + 4 * others, abs=1000 if double else 0)
    tiles = load_4bit(whole, double_quantization=double).get_memory_footprint()
    if nf4_cpu.supported():  # scales in bf16; projections are there twice
        expected = (0.5 + 2 / 64) * (experts + projections) + (0.5 + scales) * projections + 2 * others
    else:
        expected = (0.5 + scales) * (experts + projections) + 2 * others
    assert tiles == pytest.approx(expected, abs=1000 if double else 0)


@pytest.mark.parametrize(("shape", "parameters", "most"), [("jetmoe-8b", 8.5e9, 5.2), ("olmoe-1b-7b", 6.9e9, 4.4)])
def test_what_released_shapes_take_in_4_bits(shape, parameters, most):
    """In GiB, as computed from what each parameter is stored in, in tiles too, where projections are there twice."""
    config = AutoConfig.for_model(**shapes.SHAPES[shape])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config).bfloat16()
    total = {"rows": 0, "tiles": 0}
    for slot in slots_of(model, True, False, torch.bfloat16):
        numbers = slot.shape.numel()
        if isinstance(slot.module, Experts):
            sizes = {kind: nf4.empty(tuple(slot.shape), device="meta", tiled=kind == "tiles").nbytes for kind in total}
            assert max(sizes.values()) <= 0.57 * numbers
        else:
            rows = numbers * (nf4.BYTES_PER_WEIGHT if slot.quantized else 2)
            sizes = {"rows": rows, "tiles": rows * (2 if slot.quantized else 1)}
        total = {kind: total[kind] + sizes[kind] for kind in total}
    assert model.num_parameters() > parameters
    assert 0.8 * most < min(total.values()) / 2**30 < max(total.values()) / 2**30 <= most


@pytest.mark.processes
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux can forget an earlier peak")
def test_memory_peaks_near_the_final_size(tmp_path):
    """In a process of its own, so that no memory of earlier tests is taken again."""
    wide = toy_model(hidden_size=1024, intermediate_size=2048, kv_channels=64, num_local_experts=8)
    wide.bfloat16().save_pretrained(tmp_path)
    run = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, check=True)
    footprint, growth = map(int, run.stdout.split())
    one_slice = 2 * 2 * 2048 * 1024  # an expert's larger projection
    assert growth < footprint + 4 * one_slice, (footprint, growth)


# Loads twice; the first time fills what libraries keep.
PEAK = """
import sys
from pathlib import Path
from jetmoe import JetMoeForCausalLM
from jetmoe.loading.load import load

def kib(name):
    return next(int(row.split()[1]) for row in open("/proc/self/status") if row.startswith(name))

del_me = load(JetMoeForCausalLM, sys.argv[1], quantization="nf4")
Path("/proc/self/clear_refs").write_text("5")
before = kib("VmRSS")
model = load(JetMoeForCausalLM, sys.argv[1], quantization="nf4")
print(model.get_memory_footprint(), (kib("VmHWM") - before) * 1024)
"""


def test_every_way_to_ask_for_4_bits_is_the_same(whole):
    expected = logits(load_4bit(whole))
    assert not torch.equal(expected, logits(load(JetMoeForCausalLM, whole)))
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    for model_class in (JetMoeForCausalLM, AutoModelForCausalLM):
        for asked in ({"quantization": "nf4"}, {"quantization_config": config}):
            model = model_class.from_pretrained(whole, dtype="bfloat16", **asked)
            assert type(model) is JetMoeForCausalLM and torch.equal(logits(model), expected)
    double = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True)
    model = JetMoeForCausalLM.from_pretrained(whole, quantization_config=double)
    assert torch.equal(logits(model), logits(load_4bit(whole, double_quantization=True)))


def test_other_quantizations_are_refused(whole):
    with pytest.raises(ValueError, match="quantization='int3' is not supported; use 'nf4' or None"):
        JetMoeForCausalLM.from_pretrained(whole, quantization="int3")
    for config in (BitsAndBytesConfig(load_in_8bit=True), {"quant_method": "gptq"}, {"quant_method": "torchao"}):
        with pytest.raises(ValueError, match=r"use BitsAndBytesConfig\(load_in_4bit=True\)"):
            JetMoeForCausalLM.from_pretrained(whole, quantization_config=config)
    with pytest.raises(TypeError, match="4-bit weights don't support these arguments: max_memory"):
        JetMoeForCausalLM.from_pretrained(whole, quantization="nf4", max_memory={0: "1GiB"})


def test_classification_gets_a_new_head(whole):
    language_model = load_4bit(whole)
    for arguments in ({"quantization": "nf4"}, {}):
        model = load(JetMoeForSequenceClassification, whole, **arguments)
        assert model.score.weight.shape == (2, 64) and model.score.weight.abs().sum() > 0
        assert logits(model).shape == (2, 2)
    with torch.no_grad():
        states = load(JetMoeForSequenceClassification, whole, quantization="nf4").model(IDS)
        assert torch.equal(states.last_hidden_state, language_model.model(IDS).last_hidden_state)


def test_a_classification_head_comes_back(whole, tmp_path):
    model = load(JetMoeForSequenceClassification, whole, quantization="nf4")
    model.save_pretrained(tmp_path)
    again = JetMoeForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(model))
    body = load(JetMoeForCausalLM, tmp_path)  # which needs no such head
    assert torch.equal(logits(body), logits(load_4bit(whole)))


def test_old_names_in_config_are_honoured(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    edit_config(tmp_path, lambda config: config.update(n_layer=config.pop("num_hidden_layers")))
    assert torch.equal(logits(load_4bit(tmp_path)), logits(load_4bit(whole)))
    edit_config(tmp_path, lambda config: config.update(num_layers=config.pop("n_layer") - 1))
    assert "(2 layers, 4 experts): unexpected: model.layers.2.input_layernorm.weight" in refusal(tmp_path)


@pytest.mark.parametrize("untied", [False, True])
def test_progress_ends_at_the_total_and_never_goes_back(untied, tmp_path):
    noisy_toy(tie_word_embeddings=not untied).save_pretrained(tmp_path)
    total = sum(tensor.nbytes for tensor in load_file(tmp_path / "model.safetensors").values())
    for run in (
        lambda seen: load(JetMoeForCausalLM, tmp_path, progress=seen),
        lambda seen: load(JetMoeForSequenceClassification, tmp_path, quantization="nf4", progress=seen),
        lambda seen: convert(tmp_path, tmp_path / "4bit", progress=seen),
        lambda seen: JetMoeForCausalLM.from_pretrained(tmp_path, quantization="nf4", progress=seen),
    ):
        calls = []
        run(lambda done, whole, calls=calls: calls.append((done, whole)))
        assert len(calls) > 3 and calls == sorted(calls) and calls[-1] == (total, total)
        assert {whole for _, whole in calls} == {total}


# --- saving and converting


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("double", [False, True])
def test_saved_in_4_bits_it_comes_back_bit_for_bit(whole, tmp_path, double, dtype):
    model = load_4bit(whole, double_quantization=double, dtype=dtype)
    expected = logits(model)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert torch.equal(logits(model), expected)  # saving changes nothing
    again = JetMoeForCausalLM.from_pretrained(tmp_path, **({} if dtype == torch.bfloat16 else {"dtype": dtype}))
    assert torch.equal(logits(again), expected)
    assert again.get_memory_footprint() == model.get_memory_footprint()
    assert again.config.quantization_config["bnb_4bit_use_double_quant"] is double
    stored = stored_tensors(tmp_path)
    size = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert size < 0.6 * (whole / "model.safetensors").stat().st_size and stored[f"{LAYER}.mlp.bias"].dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("double", [False, True])
def test_converting_is_loading_in_4_bits(whole, shards, tmp_path, double, dtype):
    expected = logits(load_4bit(whole, double_quantization=double, dtype=dtype))
    for folder in (whole, shards):
        to = tmp_path / folder.name
        convert(folder, to, double_quantization=double)
        assert torch.equal(logits(JetMoeForCausalLM.from_pretrained(to, dtype=dtype)), expected)
        index = json.loads((to / INDEX).read_text())
        assert set(index["weight_map"].values()) == {file.name for file in to.glob("*.safetensors")}
        assert json.loads((to / "config.json").read_text())["quantization_config"]["load_in_4bit"]
        for name in ("tokenizer.json", "tokenizer.model"):
            assert (to / name).is_file() == (folder is whole)
    with pytest.raises(CheckpointError, match="is already 4-bit"):
        convert(to, tmp_path / "again")


def test_converting_goes_on_where_it_stopped(whole, tmp_path):
    convert(whole, tmp_path)
    expected = logits(JetMoeForCausalLM.from_pretrained(tmp_path))
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == 5  # embeddings, three layers, norm
    times = {file: file.stat().st_mtime_ns for file in files}
    files[2].unlink()
    files[2].with_name(f"{files[2].name}.part").write_bytes(b"half of it")
    (tmp_path / "config.json").unlink()
    convert(whole, tmp_path)
    assert {file for file in files if file.stat().st_mtime_ns != times[file]} == {files[2]}
    assert not list(tmp_path.glob("*.part"))
    assert torch.equal(logits(JetMoeForCausalLM.from_pretrained(tmp_path)), expected)


def test_a_conversion_of_something_else_is_not_gone_on_with(whole, tmp_path):
    convert(whole, tmp_path / "to")
    (tmp_path / "to" / INDEX).unlink()
    before = {file.name: file.read_bytes() for file in (tmp_path / "to").iterdir()}
    other = shutil.copytree(whole, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors[f"{LAYER}.mlp.bias"] += 1  # another training of the same model
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    for folder, double in ((other, False), (whole, True)):
        with pytest.raises(CheckpointError, match=r"from another checkpoint or with other settings.* delete this one"):
            convert(folder, tmp_path / "to", double_quantization=double)
    assert {file.name: file.read_bytes() for file in (tmp_path / "to").iterdir()} == before
    convert(shutil.copytree(whole, tmp_path / "moved"), tmp_path / "to")  # the same, wherever it lies
    with pytest.raises(CheckpointError, match="from another checkpoint"):
        convert(whole, other)  # nor are weights overwritten that no conversion made


# --- from the hub


@pytest.fixture
def hub(whole, tmp_path, monkeypatch):
    """A hub's cache with a 4-bit checkpoint, doubly quantized: whole, and in a folder of the repository."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # Auto classes ask all the same
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--somebody--jetmoe-4bit"
    snapshot = repository / "snapshots" / revision
    convert(whole, snapshot / "inner", double_quantization=True)
    shutil.copytree(snapshot / "inner", snapshot, dirs_exist_ok=True)
    for name in ("main", "v1"):
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(revision)
    return {"cache_dir": tmp_path / "hub", "local_files_only": True}


@pytest.mark.parametrize("model_class", [JetMoeForCausalLM, AutoModelForCausalLM])
@pytest.mark.parametrize("where", [{}, {"revision": "v1"}, {"subfolder": "inner"}])
def test_a_4_bit_checkpoint_on_the_hub_loads_in_4_bits(whole, hub, where, model_class):
    model = model_class.from_pretrained("somebody/jetmoe-4bit", **where, **hub)
    assert quantized_share(model) > 0.5 and model.config.quantization_config["bnb_4bit_use_double_quant"]
    assert torch.equal(logits(model), logits(load_4bit(whole, double_quantization=True)))


def test_a_checkpoint_that_the_hub_does_not_have(hub):
    for name, where in (("somebody/else", {}), ("somebody/jetmoe-4bit", {"revision": "v2"})):
        with pytest.raises(OSError, match="cached files"):
            JetMoeForCausalLM.from_pretrained(name, **where, **hub)


# --- devices


@pytest.mark.parametrize("place", ["cpu", "auto", {"": "cpu"}, {"model": "cpu", "lm_head": torch.device("cpu")}])
def test_device_maps_of_one_device_are_that_device(whole, place):
    model = JetMoeForCausalLM.from_pretrained(whole, quantization="nf4", device_map=place)
    assert torch.equal(logits(model), logits(load_4bit(whole)))
    assert not hasattr(model.model, "_hf_hook")


def test_disk_is_refused(broken):
    assert "does not fit into the memory" in refusal(broken, device_map={"model": "cpu", "lm_head": "disk"})


class Seeing(nn.Linear):
    """Keeps the weight that it ran with."""

    def forward(self, rows):
        self.seen = (self.weight,)
        return super().forward(rows)


def test_weights_are_lent_and_come_home():
    """A device without data stands in for a GPU."""
    linear = Seeing(4, 3)
    weight, bias = linear.weight, linear.bias
    add_hook_to_module(linear, RunOn(torch.device("meta")))
    for _ in range(2):
        output = linear(torch.ones(2, 4))
        assert output.device.type == linear.seen[0].device.type == "meta" and output.shape == (2, 3)
        assert linear.weight is weight and linear.bias is bias


def test_at_home_nothing_is_lent():
    linear = Seeing(4, 3)
    rows = torch.ones(2, 4)
    expected = linear(rows)
    add_hook_to_module(linear, RunOn(torch.device("cpu")))
    assert torch.equal(linear(rows), expected) and linear.seen[0] is linear.weight


def test_a_model_on_two_devices(whole):
    """The layers' weights rest on the CPU, in rows, and run on the other device; all are as before afterwards."""
    places = {"model.embed_tokens": "cpu", "model.layers": "cpu", "model.norm": "meta", "lm_head": "meta"}
    model = load_4bit(whole, device_map=places)
    layer = model.model.layers[1]
    before = {name: parameter for name, parameter in model.named_parameters() if parameter.device.type == "cpu"}
    scales = layer.self_attention.kv_proj.weight.quant_state.absmax.clone()
    assert not layer.mlp.input_linear.weight.parts.tiled and model.model.norm.weight.device.type == "meta"
    for _ in range(2):
        assert logits(model, IDS[:1, :3]).device.type == "meta"
        after = {name: parameter for name, parameter in model.named_parameters() if parameter.device.type == "cpu"}
        assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)
        assert torch.equal(layer.self_attention.kv_proj.weight.quant_state.absmax, scales)


@pytest.mark.parametrize("arguments", [{"device": "cuda"}, {"device_map": 0}, {"device_map": {"": "cuda:0"}}])
def test_cuda_that_is_not_there(broken, monkeypatch, arguments):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CheckpointError, match="There is no CUDA device on this machine; load on the CPU"):
        if "device" in arguments:
            load(JetMoeForCausalLM, broken, **arguments)
        else:
            JetMoeForCausalLM.from_pretrained(broken, quantization="nf4", **arguments)


def test_a_gpu_that_is_too_small(broken, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * 2**10, 80 * 2**10))
    monkeypatch.setattr(devices, "GIB", 2**10)  # a toy's gibibyte
    sizes = {name: tensor.nbytes for name, tensor in stored_tensors(broken).items()}
    needed = sum(sizes.values()) + devices._cache_bytes(read_model_config(broken))
    message = refusal(broken, device="cuda")
    assert f"need {needed / 2**10:.1f} GiB and the GPU has 10.0 of 80.0 GiB free: use quantization='nf4'" in message
    four_bit = sum(size for name, size in sizes.items() if re.search("_linear|kv_proj", name)) // 2
    message = refusal(broken, device="cuda", quantization="nf4")
    assert f"need {(needed - 2 * four_bit + 0.5625 * four_bit) / 2**10:.1f} GiB" in message and "device_map" in message


# --- what can be wrong with the files


def edit_config(folder, edit):
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


def edit_shard(folder, name, edit):
    """Changes the tensors of the shard that holds a name, and says which file that is."""
    file = folder / json.loads((folder / INDEX).read_text())["weight_map"][name]
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return file


def test_another_family(broken):
    edit_config(broken, lambda config: config.update(model_type="llama"))
    assert "is a 'llama' checkpoint, not JetMoE or OLMoE; pick a model of these families" in refusal(broken)
    (broken / "config.json").unlink()
    assert "holds no config.json; use the folder of a complete checkpoint" in refusal(broken)


def test_everything_that_does_not_fit_is_in_one_message(broken):
    for number in (1, 2):
        edit_shard(broken, f"model.layers.{number}.mlp.bias", lambda t, n=number: t.pop(f"model.layers.{n}.mlp.bias"))
    edit_shard(broken, "model.norm.weight", lambda tensors: tensors.update({"model.extra": torch.zeros(2)}))
    edit_shard(broken, "model.norm.weight", lambda tensors: tensors.update({"model.norm.weight": torch.zeros(3)}))
    for quantization in (None, "nf4"):
        message = refusal(broken, quantization=quantization)
        assert "(3 layers, 4 experts): missing: model.layers.{1-2}.mlp.bias; unexpected: model.extra;" in message
        assert "model.norm.weight is [3] instead of [64]" in message and "config.json that belongs" in message


def test_too_many_layers_in_config(broken):
    edit_config(broken, lambda config: config.update(num_hidden_layers=6))
    message = refusal(broken)
    assert "(6 layers, 4 experts): missing: model.layers.{3-5}.mlp.bias, " in message
    assert "unexpected" not in message


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 10_000, "\ud800{"])
@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_a_damaged_configuration_or_index_is_refused(broken, name, text):
    (broken / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    assert re.search(rf"{name} is damaged .* download it again", refusal(broken))


@pytest.mark.parametrize("weight_map", [None, [], {"model.norm.weight": 3}])
def test_an_index_that_names_no_files_is_refused(broken, weight_map):
    (broken / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert f"{INDEX} names no files of weights" in refusal(broken)


@pytest.mark.parametrize("entry", [3, {}, {"dtype": "F32", "shape": [1]}])
def test_a_header_with_half_an_entry_is_damaged(broken, entry):
    header = json.dumps({"model.norm.weight": entry}).encode()
    file = next(broken.glob("*.safetensors"))
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    assert f"{file.name} is damaged" in refusal(broken)


def test_damaged_cut_and_missing_files_are_named_together(broken):
    files = sorted(broken.glob("*.safetensors"))
    whole = files[0].read_bytes()
    files[0].write_bytes(whole[:-8])
    files[1].unlink()
    message = refusal(broken)
    assert re.search(
        rf"is incomplete: {files[0].name} is truncated in \S*model.*; {files[1].name} is missing\.", message
    )
    assert "Download these files again" in message
    for damaged in (b"", b"\0" * 8, whole[:8] + b"{" * (len(whole) - 8), whole[:100], b"\2" + b"\0" * 7 + b"[]"):
        files[0].write_bytes(damaged)
        assert f"{files[0].name} is damaged; {files[1].name} is missing" in refusal(broken)


def test_pickles_are_refused(tmp_path, broken):
    for file in [*broken.glob("*.safetensors"), broken / INDEX]:
        file.unlink()
    assert "holds no model.safetensors" in refusal(broken)
    torch.save({}, broken / "pytorch_model.bin")
    message = refusal(broken)
    assert "holds pickle files (pytorch_model.bin), which can run code" in message and "safetensors" in message


def test_unknown_number_formats_are_refused(broken):
    narrow = torch.zeros(64).to(torch.float8_e4m3fn)
    file = edit_shard(broken, "model.norm.weight", lambda tensors: tensors.update({"model.norm.weight": narrow}))
    assert f"{file.name} holds F8_E4M3" in refusal(broken)


def test_sizes_that_4_bits_cannot_hold_are_refused(tmp_path):
    toy_model(hidden_size=32, kv_channels=24).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="multiples of 64, and this model has 16, 32, 48; load it in 16 bits"):
        load_4bit(tmp_path)
    assert load(JetMoeForCausalLM, tmp_path).config.hidden_size == 32
