"""The catalog: the models of this studio, folders, and models of the Hub. Downloads are in `test_hub.py`."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from jetmoe.families import FAMILIES
from jetmoe.loading.slots import slots_of
from jetmoe.nf4.parts import BYTES_PER_WEIGHT
from studio.backend.bench.shapes import SHAPES
from studio.backend.models import catalog, hub, starter
from studio.errors import StudioError


@pytest.fixture
def empty_home(monkeypatch, tmp_path):
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path))
    return tmp_path


def test_starter_comes_first_and_ids_are_unique():
    ids = [model.id for model in catalog.models()]
    assert ids[:6] == [
        "starter", "jetmoe/jetmoe-8b", "jetmoe/jetmoe-8b-chat", "jetmoe/jetmoe-8b-sft", "allenai/OLMoE-1B-7B-0924",
        "allenai/OLMoE-1B-7B-0924-Instruct",
    ]  # fmt: skip
    assert {model.licence for model in catalog.RELEASED} == {"Apache-2.0"}
    assert len(ids) == len(set(ids))


def test_rows_are_what_the_command_prints(empty_home):
    rows = catalog.rows()
    documented = {"id", "family", "source", "ready", "path", "needs_gib"}
    assert all(documented < set(row) for row in rows)
    assert rows[0]["id"] == "starter" and rows[0]["ready"] is False and rows[0]["path"] is None
    assert rows[0]["fits"] == ["bf16", "nf4"] and rows[0]["chat_template"] is True
    json.dumps(rows)


@pytest.mark.parametrize(("shape", "model_id"), [("jetmoe-8b", "jetmoe/jetmoe-8b"),
                                                 ("olmoe-1b-7b", "allenai/OLMoE-1B-7B-0924")])  # fmt: skip
def test_memory_is_that_of_weights_keys_and_values(shape, model_id):
    """Computed from what the model code stores for the released shapes, with a full context and at most 1.5 GiB."""
    model = catalog.entry(model_id)
    config = AutoConfig.for_model(**SHAPES[shape])
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config).bfloat16()
    slots = slots_of(built, True, False, torch.bfloat16)
    sizes = {
        "bf16": 2 * built.num_parameters(),
        "nf4": sum(slot.shape.numel() * (BYTES_PER_WEIGHT if slot.quantized else 2) for slot in slots),
    }
    head = getattr(config, "kv_channels", config.hidden_size // config.num_attention_heads)
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * head * config.max_position_embeddings * 2
    for precision, weights in sizes.items():
        needed = (weights + cache) / catalog.GIB
        assert needed < model.needs_gib[precision] < needed + 1.5, precision
    assert model.download_gib == pytest.approx(sizes["bf16"] / catalog.GIB, abs=0.1)


def test_folders_in_the_home_are_models(empty_home):
    folder = empty_home / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "jetmoe", "dtype": "float32"}')
    assert not catalog.ready("mine")
    with pytest.raises(StudioError, match="is incomplete"):
        catalog.prepare("mine")
    (folder / "model.safetensors").write_bytes(b"\0" * 4000)
    assert catalog.prepare("mine") == folder and catalog.path("mine") == folder
    assert catalog.entry(str(folder)).source == str(folder)
    assert catalog.entry("mine").family == "jetmoe"


def test_unknown_model_names_the_known(empty_home):
    with pytest.raises(StudioError, match=r"no model 'gpt-5'\. Pick one of starter, jetmoe/jetmoe-8b"):
        catalog.entry("gpt-5")


def test_home_is_configurable(empty_home, monkeypatch):
    assert catalog.home() == empty_home and starter.path() == empty_home / "models" / "starter"
    monkeypatch.delenv("STUDIO_HOME")
    assert catalog.home().name == "jetmoe-studio"


def test_the_size_of_4_bit_weights_is_that_of_the_model_code():
    assert catalog.NF4_BYTES == BYTES_PER_WEIGHT


def test_the_families_are_those_of_the_model_code():
    assert {name: family.name for name, family in FAMILIES.items()} == hub.FAMILIES


@pytest.mark.parametrize(
    "text", ["../../etc", "a/b/c", "a/../b", "a/b@../../x", "a--b/c", "/etc", "a/b@", "a b/c", "-a/b"]
)
def test_what_is_no_id_of_the_hub(empty_home, text):
    assert not hub.is_reference(text)
    with pytest.raises(StudioError, match="Write owner/name"):
        hub.parse(text)
    with pytest.raises(StudioError, match="There is no model"):
        catalog.entry(text)


def test_an_id_of_the_hub_is_a_model_that_is_not_here(empty_home):
    model = catalog.entry("somebody/Model-1.0@v2")
    assert (model.source, model.revision, model.needs_gib) == ("somebody/Model-1.0", "v2", {})
    assert not catalog.ready(model.id) and hub.parse("https://huggingface.co/a/b/").id == "a/b"
