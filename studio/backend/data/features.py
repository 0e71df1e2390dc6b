"""Tokenize examples in batches to the rows of a run, only as far as its steps read them.

found = features_of(tokenizer, dataset.examples, train, recipe, needed=240)
found.rows[0]                    # [(token ids, whether each is trained), ...]: the examples of a pack
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from studio.backend.data.examples import Examples
from studio.backend.data.packing import Feature, pack
from studio.backend.data.rendering import Rendered, render_all, unfit_rows
from studio.backend.data.row import BadRow
from studio.backend.recipe import Recipe

BATCH = 256
"""Examples that are tokenized in one call."""


class Features(NamedTuple):
    rows: list[Feature]
    rendered: list[Rendered]
    """The examples that were tokenized, in the order of the file."""
    unfit: dict[int, BadRow]
    """The examples that the chat template can't render, by their index."""


def features_of(
    tokenizer: PreTrainedTokenizerBase, examples: Examples, chosen: np.ndarray, recipe: Recipe, needed: int = 0
) -> Features:
    """Return the rows, or packs, of the chosen examples.

    Args:
        chosen: indices of the examples.
        needed: number of rows or packs that are read. If the examples have more, random ones are taken, the same ones
            for the same seed. 0 takes all.

    Raises:
        StudioError: as `render_all`.
    """
    found: dict[int, Rendered] = {}
    tokens = rows = 0
    most_tokens = needed * recipe.max_length
    order = _order(chosen, recipe.seed, needed)
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        conversations = (examples[i].messages for i in batch)
        for i, each in zip(batch, render_all(tokenizer, conversations, recipe.max_length), strict=True):
            found[i] = _compact(each)
            if each.trained_tokens:
                tokens, rows = tokens + len(each.token_ids), rows + 1
        if needed and (tokens >= most_tokens if recipe.packing else rows >= needed):
            break
    rendered = [found[i] for i in sorted(found)]
    return Features(_rows(rendered, recipe.max_length, recipe.packing), rendered, unfit_rows(found, examples))


def _order(chosen: np.ndarray, seed: int, needed: int) -> Sequence[int]:
    """Return the indices in the order of the file, or in a random one if only some may be read."""
    order = chosen.tolist()
    if needed and len(order) > needed:
        random.Random(seed).shuffle(order)
    return order


def _compact(rendered: Rendered) -> Rendered:
    """Return the same values in 5 bytes a token."""
    return replace(rendered, token_ids=array("i", rendered.token_ids), trained=bytes(rendered.trained))


def _rows(rendered: Sequence[Rendered], max_length: int, packing: bool) -> list[Feature]:
    examples = [(each.token_ids, each.trained) for each in rendered if each.trained_tokens]
    if not packing:
        return [[example] for example in examples]
    packs = pack([len(token_ids) for token_ids, _ in examples], max_length)
    return [[examples[i] for i in indices] for indices in packs]
