"""Copies, files, configurations and arguments of `from_pretrained`."""

from __future__ import annotations

import copy
import json
import pickle
from functools import partial
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
)

from tests.benchmarks.compatibility.place import (
    FEW,
    Place,
    Results,
    attempt,
    generated,
    logits,
    require_change,
)
from tests.benchmarks.compatibility.registry import row

GROUP = "Models"


@row(GROUP, "deepcopy", four_bits=True)
def deepcopied(place: Place) -> Results:
    model = place.model()
    copied = copy.deepcopy(model)
    return {"logits": logits(copied), "few": logits(copied, FEW)}


@row(GROUP, "pickle of the configuration and of the model", four_bits=True)
def pickled(place: Place) -> Results:
    model = place.model()
    config = pickle.loads(pickle.dumps(model.config))
    results = {"equal": torch.tensor(config.to_dict() == model.config.to_dict())}
    return results | attempt("model", lambda: logits(pickle.loads(pickle.dumps(model))))


@row(GROUP, "torch.save and torch.load of a state_dict")
def state_dict_file(place: Place) -> Results:
    model = place.model()
    torch.save(model.state_dict(), place.folder / "state.pt")
    other = AutoModelForCausalLM.from_config(model.config).eval()
    other.load_state_dict(torch.load(place.folder / "state.pt", weights_only=True))
    return {"logits": logits(other)}


@row(GROUP, "save_pretrained in shards, and loaded again", four_bits=True)
def shards(place: Place) -> Results:
    model = place.model()
    model.save_pretrained(place.folder / "model", max_shard_size="40KB")
    options = {} if place.four_bits and place.ours else {"dtype": torch.float32}
    loaded = AutoModelForCausalLM.from_pretrained(place.folder / "model", **options)
    count = len(list((place.folder / "model").glob("*.safetensors")))
    loaded = loaded.float() if not place.four_bits else loaded
    results = {"sharded": torch.tensor(count > 2)}
    if not place.four_bits:
        results["logits"] = logits(loaded.eval())
    else:
        results["generated"] = torch.tensor(generated(loaded.eval()).shape)
    return results


@row(GROUP, "save_pretrained with a state_dict, and of bf16")
def save_options(place: Place) -> Results:
    model = place.model()
    model.save_pretrained(place.folder / "a", state_dict={k: v * 1.5 for k, v in model.state_dict().items()})
    model.to(torch.bfloat16).save_pretrained(place.folder / "b")
    loaded = [AutoModelForCausalLM.from_pretrained(place.folder / name, dtype="auto").eval() for name in "ab"]
    return {"scaled": logits(loaded[0]), "dtype": torch.tensor(loaded[1].dtype.itemsize)}


@row(GROUP, "from_pretrained(None, config=, state_dict=)")
def from_state(place: Place) -> Results:
    model = place.model()
    made = AutoModelForCausalLM.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    return {"logits": logits(made.eval())}


@row(GROUP, "class.from_pretrained(None, config=, state_dict=)")
def class_from_state(place: Place) -> Results:
    model = place.model()
    made = type(model).from_pretrained(None, config=model.config, state_dict=model.state_dict())
    return {"logits": logits(made.eval())}


@row(GROUP, "from_config, and weights of the same seed", four_bits=False)
def from_config(place: Place) -> Results:
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(place.path()))
    return {
        f"std of {name}": one.std().round(decimals=2)
        for name, one in model.named_parameters()
        if one.ndim > 1 and "experts" not in name and "linear" not in name
    }


LOADING: dict[str, dict[str, Any]] = {
    "dtype='bfloat16'": {"dtype": "bfloat16"},
    "dtype='auto'": {"dtype": "auto"},
    "torch_dtype=torch.float16": {"torch_dtype": torch.float16, "dtype": None},
    "device_map='cpu'": {"device_map": "cpu"},
    "device_map='auto'": {"device_map": "auto"},
    "low_cpu_mem_usage": {"low_cpu_mem_usage": True},
    "output_loading_info": {"output_loading_info": True},
    "use_safetensors": {"use_safetensors": True},
    "key_mapping": {"key_mapping": {"^model.": "model."}},
    "changed configuration by keyword": {"attention_dropout": 0.1, "use_cache": False},
}
for name, options in LOADING.items():

    def load(place: Place, options: dict[str, Any]) -> Results:
        kept = {key: value for key, value in {"dtype": torch.float32, **options}.items() if value is not None}
        bits = {"quantization": "nf4"} if place.four_bits and place.ours else {}
        model = AutoModelForCausalLM.from_pretrained(place.path(), **kept, **bits)
        if isinstance(model, tuple):
            model, info = model
            counts = torch.tensor([len(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")])
        else:
            counts = torch.zeros(0)
        return {"size": torch.tensor(model.dtype.itemsize), "keys": counts, "logits": logits(model.float().eval())}

    row(GROUP, f"from_pretrained, {name}", tolerance=3e-2 if "float16" in name else 1e-5)(
        partial(load, options=options)
    )


ROPE: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    "yarn": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 10000.0, "original_max_position_embeddings": 256},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "rope_theta": 10000.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "another theta": {"rope_type": "default", "rope_theta": 500.0},
}  # fmt: skip


def rope(place: Place, parameters: dict[str, Any], way: str) -> Results:
    parameters = dict(parameters)
    options: dict[str, Any] = {"dtype": torch.float32}
    path = place.path()
    if way == "configuration":
        config = AutoConfig.from_pretrained(path)
        config.rope_parameters = parameters
        options["config"] = config
    elif way == "keyword":
        options["rope_parameters"] = parameters
    elif way == "rope_scaling":
        options["rope_scaling"] = parameters
    else:
        import shutil

        path = place.folder / "model"
        shutil.copytree(place.path(), path)
        stored = json.loads((path / "config.json").read_text())
        stored["rope_parameters"] = parameters
        (path / "config.json").write_text(json.dumps(stored))
    model = AutoModelForCausalLM.from_pretrained(path, **options).eval()
    long = torch.randint(3, 250, (1, 600), generator=torch.Generator().manual_seed(5))
    results = {
        "logits": logits(model),
        "long": logits(model, long[:, : 600 if parameters["rope_type"] == "dynamic" else 200]),
    }
    plain = logits(place.model())
    require_change(plain, results["logits"] if parameters["rope_type"] != "dynamic" else torch.zeros_like(plain))
    return results


for name, parameters in ROPE.items():
    for way in ("configuration", "keyword", "config.json", "rope_scaling"):
        row(GROUP, f"RoPE {name} by {way}", tolerance=1e-4)(partial(rope, parameters=parameters, way=way))


@row(GROUP, "rope_theta set after loading the configuration")
def rope_theta(place: Place) -> Results:
    config = AutoConfig.from_pretrained(place.path())
    config.rope_parameters["rope_theta"] = 500.0
    return {
        "logits": logits(AutoModelForCausalLM.from_pretrained(place.path(), config=config, dtype=torch.float32).eval())
    }
