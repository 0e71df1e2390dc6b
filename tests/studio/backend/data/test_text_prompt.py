"""Prompts around the texts of a classifier: what they ask for, and what is cut."""

import pytest

from studio.backend.data.text_prompt import encode, encode_all, filled, prompt_for
from studio.backend.recipe import NO_PROMPT, Recipe
from studio.errors import StudioError
from tests.builders.toy_folder import toy_tokenizer

PROMPT = "Text: {text}\nLabel:"


@pytest.fixture(scope="module")
def tokenizer():
    return toy_tokenizer()


@pytest.mark.parametrize(
    ("column", "kind"),
    [("section", "section"), ("Star_rating ", "star rating"), ("label", "category"), ("{text}", "category")],
)
def test_auto_asks_for_what_the_column_holds(column, kind):
    prompt = prompt_for(Recipe(task="classify", prompt="auto"), column)
    assert f" {kind} " in prompt and prompt.count("{text}") == 1


@pytest.mark.parametrize(
    ("problem", "column", "words"),
    [
        ("multi_label", "topic", "What are the topic labels of this text?\nAnswer: The topic labels are"),
        ("multi_label", "labels", "What are the category labels of this text?"),
        ("regression", "stars", "What is the stars of this text, as a number?\nAnswer: The stars is"),
        ("regression", "label", "What is the score of this text, as a number?"),
    ],
)
def test_auto_asks_for_several_labels_or_a_number(problem, column, words):
    assert words in prompt_for(Recipe(task="classify", prompt="auto", problem=problem), column)


def test_a_slot_in_a_text_is_text():
    assert filled(PROMPT, "{text} {label}") == "Text: {text} {label}\nLabel:"


def test_tokens_are_those_of_the_filled_prompt(tokenizer):
    token_ids, is_cut = encode(tokenizer, "A game", 64, PROMPT)
    assert tokenizer.decode(token_ids) == "Text: A game\nLabel:" and not is_cut
    assert encode(tokenizer, "A game", 64) == (tokenizer("A game")["input_ids"], False)


def test_the_text_is_cut_and_the_prompt_never(tokenizer):
    (long, is_cut), short = encode_all(tokenizer, ["0123456789" * 9, "x"], 30, PROMPT)
    assert tokenizer.decode(long) == "Text: 01234567890123456\nLabel:" and len(long) == 30 and is_cut
    assert tokenizer.decode(short[0]) == "Text: x\nLabel:" and not short[1]


def test_a_prompt_without_room_for_a_text_is_refused(tokenizer):
    with pytest.raises(StudioError, match="leaves no room for a text within max_length=16"):
        encode(tokenizer, "A game", 16, "x" * 16 + NO_PROMPT)


@pytest.mark.parametrize("prompt", ["", "no slot", "{text} and {text}", "{text}" + "x" * 1000])
def test_prompts_that_can_not_be_used_are_refused(prompt):
    with pytest.raises(StudioError, match="set auto, or a text with"):
        Recipe(task="classify", prompt=prompt)


@pytest.mark.parametrize("changes", [{"prompt": "auto"}, {"method": "probe"}])
def test_chat_has_no_prompt_and_no_probe(changes):
    with pytest.raises(StudioError, match="method, prompt and with_tfidf are for classifiers"):
        Recipe(**changes)
