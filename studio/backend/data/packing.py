"""Pack short examples into shared rows of a batch, without attention between them.

    packs = pack([len(each.token_ids) for each in rendered], max_length=1024)
    features = [[(rendered[i].token_ids, rendered[i].trained) for i in each] for each in packs]
    batch = Collator(pad_id)(features[:4])        # input_ids, labels, position_ids, token_mask, each [B, S]

There is no attention mask: transformers' `create_causal_mask` separates the examples where `position_ids` restart. The
token mask only excludes padding from the router losses.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jetmoe.losses import IGNORED

Feature = Sequence[tuple[Sequence[int], Sequence[int]]]
"""The examples of one row: token ids, and whether each token is trained."""


def pack(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Return the indices of the examples of each row.

    Best-fit decreasing: the longest example first, each into the fullest row that has room for it.

    Raises:
        ValueError: an example is longer than a row.
    """
    if max(lengths, default=0) > max_length:
        raise ValueError(f"an example of {max(lengths)} tokens does not fit into a row of {max_length}")
    packs: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, index of the pack), sorted
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect_left(rooms, (lengths[i], 0))
        if place == len(rooms):
            packs.append([])
            rooms.append((max_length, len(packs) - 1))
        room, target = rooms.pop(place)
        packs[target].append(i)
        insort(rooms, (room - lengths[i], target))
    return packs


def in_batches(lengths: Sequence[int], most_tokens: int) -> list[list[int]]:
    """Return batches of indices, longest first, of at most `most_tokens` tokens with padding.

    A batch holds at least one index, even if its text is longer.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > most_tokens:
            batches.append([])
        batches[-1].append(i)
    return batches


def side_by_side(rows: Sequence[Sequence[Sequence[int]]], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Collate packed texts without labels.

    Returns:
        `input_ids` and `position_ids` `[B, S]`, and the index of each text's last token in the flattened rows
        `[texts]`.
    """
    size = max(sum(map(len, row)) for row in rows)
    input_ids, position_ids = torch.full((len(rows), size), pad_id), torch.zeros(len(rows), size, dtype=torch.int64)
    ends = []
    for r, row in enumerate(rows):
        start = 0
        for token_ids in row:
            end = start + len(token_ids)
            input_ids[r, start:end] = torch.tensor(token_ids)
            position_ids[r, start:end] = torch.arange(len(token_ids))
            ends.append(r * size + end - 1)
            start = end
    return input_ids, position_ids, torch.tensor(ends)


def pad_id(tokenizer: Any) -> int:
    """Return the padding token, with the eos token as the fallback. Padding is masked, so any token works."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0


class Collator:
    """Collate features into a batch.

    The first token of an example is never a label: it would be predicted from the end of the previous example.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, features: Sequence[Feature]) -> dict[str, Tensor]:
        size = max(sum(len(token_ids) for token_ids, _ in feature) for feature in features)
        rows = [_row(feature, size, self.pad_id) for feature in features]
        names = ("input_ids", "labels", "position_ids", "token_mask")
        return {
            name: torch.tensor(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)
        }  # [B, S]


def _row(feature: Feature, size: int, pad_id: int) -> tuple[list[int], list[int], list[int], list[int]]:
    input_ids: list[int] = []
    labels: list[int] = []
    position_ids: list[int] = []
    for token_ids, trained in feature:
        input_ids += token_ids
        labels += [
            token if keep and i else IGNORED for i, (token, keep) in enumerate(zip(token_ids, trained, strict=True))
        ]
        position_ids += range(len(token_ids))
    padding = size - len(input_ids)
    # Position 0 makes every padding token a separate example, which no other token attends to.
    return (
        input_ids + [pad_id] * padding,
        labels + [IGNORED] * padding,
        position_ids + [0] * padding,
        [1] * len(input_ids) + [0] * padding,
    )
