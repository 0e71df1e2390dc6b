"""The prompt around the texts of a classifier, and their tokens.

    prompt = prompt_for(recipe, column="section")          # prompt=auto asks for the section
    token_ids, is_cut = encode(tokenizer, "A game", max_length=512, prompt=prompt)

A text that is too long is cut at its end; the prompt never is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from studio.backend.recipe import AUTO_PROMPT, Recipe
from studio.backend.recipe_conflicts import NO_PROMPT
from studio.errors import StudioError

AUTO = {
    "single_label": "Text: {text}\n\nQuestion: What is the %s of this text?\nAnswer: The %s is",
    "multi_label": "Text: {text}\n\nQuestion: What are the %s labels of this text?\nAnswer: The %s labels are",
    "regression": "Text: {text}\n\nQuestion: What is the %s of this text, as a number?\nAnswer: The %s is",
}
"""By problem. Of four prompts, the first is the one whose features tell most about the sections of Debian packages."""
UNTOLD = ("label", "labels", "class", "classes", "target", "targets", "y", "output")
"""Names of columns that don't tell the kind of label."""
USUAL = {"single_label": "category", "multi_label": "category", "regression": "score"}
"""The kind of label that such a column holds, by problem."""
OPTIONS: dict[str, Any] = {"split_special_tokens": True, "return_attention_mask": False, "verbose": False}


def prompt_for(recipe: Recipe, column: str) -> str:
    """Return the recipe's prompt; `auto` is a question for what the label column holds."""
    if recipe.prompt != AUTO_PROMPT:
        return recipe.prompt
    kind = " ".join(column.replace("_", " ").split()).lower().replace(NO_PROMPT, "")
    kind = USUAL[recipe.problem] if kind in UNTOLD or not kind else kind
    return AUTO[recipe.problem] % (kind, kind)


def filled(prompt: str, text: str) -> str:
    """Return the prompt with the text, in which slots are not filled."""
    before, _, after = prompt.partition(NO_PROMPT)
    return before + text + after


def encode(
    tokenizer: PreTrainedTokenizerBase, text: str, max_length: int, prompt: str = NO_PROMPT
) -> tuple[list[int], bool]:
    """Return the token ids of a text in its prompt and whether it was truncated.

    The ids match those of a transformers pipeline for the same prompt and text, except that control tokens in the text
    are encoded as plain text.

    Raises:
        StudioError: the prompt leaves no room for a text.
    """
    return encode_all(tokenizer, [text], max_length, prompt)[0]


def encode_all(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int, prompt: str = NO_PROMPT
) -> list[tuple[list[int], bool]]:
    """Return the same as `encode` for each text, from one call of the tokenizer."""
    whole = tokenizer([filled(prompt, text) for text in texts], **OPTIONS)["input_ids"] if texts else []
    is_cut = [len(token_ids) > max_length for token_ids in whole]
    return [
        (_cut(tokenizer, text, max_length, prompt) if cut else token_ids, cut)
        for text, token_ids, cut in zip(texts, whole, is_cut, strict=True)
    ]


def _cut(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int, prompt: str) -> list[int]:
    """Return the tokens of the prompt with as much of the text as fits."""
    if prompt == NO_PROMPT:
        return list(tokenizer(text, **OPTIONS, truncation=True, max_length=max_length)["input_ids"])
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, **OPTIONS)["offset_mapping"]
    count = min(len(offsets), max_length)
    while count > 0:
        token_ids = list(tokenizer(filled(prompt, text[: offsets[count - 1][1]]), **OPTIONS)["input_ids"])
        if len(token_ids) <= max_length:
            return token_ids
        count -= len(token_ids) - max_length
    raise StudioError(
        f"The prompt leaves no room for a text within max_length={max_length} tokens: shorten the prompt or raise "
        "max_length."
    )
