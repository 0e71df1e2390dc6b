"""What a model brings along for chat, and how the page shows it."""

import pytest
from transformers import GenerationConfig

from studio.backend.chat.model_defaults import CARD, FILE, NO_DEFAULTS, ModelDefaults, model_defaults
from studio.backend.chat.sampling import Sampling
from studio.backend.models import catalog
from studio.ui.chat.sampling_form import recommendation, recommended
from tests.builders.toy_folder import toy_tokenizer

LARGE = catalog.entry("jetmoe/jetmoe-8b-chat")


def test_the_catalog_comes_before_generation_config():
    generation = GenerationConfig(do_sample=True, temperature=0.9, top_p=0.8, top_k=7)
    found = model_defaults(catalog.STARTER, generation, toy_tokenizer())
    assert found == ModelDefaults({"temperature": 0.2, "top_p": 0.9}, CARD, "")
    found = model_defaults(LARGE, generation, toy_tokenizer())
    assert found == ModelDefaults({"temperature": 0.9, "top_p": 0.8, "top_k": 7}, FILE, "")
    assert Sampling(**found.sampling).top_k == 7


@pytest.mark.parametrize("generation", [None, GenerationConfig(), GenerationConfig(repetition_penalty=90.0)])
def test_without_usable_values_there_are_none(generation):
    assert model_defaults(LARGE, generation, toy_tokenizer()) == NO_DEFAULTS


def test_the_form_says_where_its_values_are_from():
    found = ModelDefaults({"temperature": 0.2}, CARD)
    assert [update["value"] for update in recommended(found) if "value" in update] == [0.2, 0.9, 50, 0.0, 1.1]
    assert "&lt;b&gt; recommends temperature 0.2 (its model card)" in recommendation("<b>", found)
    assert "recommends no values" in recommendation("x", NO_DEFAULTS)
