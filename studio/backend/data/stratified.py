"""Hold out the same share of every stratum, in whole groups."""

from __future__ import annotations

import math
import random


def drawn(strata: list[list[list[int]]], eval_share: float, rng: random.Random) -> set[int]:
    """Hold out whole groups, about `eval_share` of the rows of each stratum, which keeps a group for training."""
    if not eval_share:
        return set()
    drawn: set[int] = set()
    for groups, wanted in zip(strata, _quotas(strata, eval_share), strict=True):
        rng.shuffle(groups)
        taken: list[int] = []
        for group in groups[1:]:
            if len(taken) + len(group) <= wanted:
                taken += group
        drawn.update(taken)
    if drawn:
        return drawn
    # No group fits into a quota: hold out the smallest group of the stratum with the most groups.
    sizes = [len(groups) for groups in strata]
    largest = strata[sizes.index(max(sizes))]
    smallest: list[int] = min(largest, key=lambda group: len(group))
    return set(smallest) if len(largest) > 1 else set()


def _quotas(strata: list[list[list[int]]], eval_share: float) -> list[int]:
    """Return the number of rows to hold out of each stratum, by the largest remainder method."""
    sizes = [sum(map(len, groups)) if len(groups) > 1 else 0 for groups in strata]
    exact = [eval_share * size for size in sizes]
    quotas = [math.floor(each) for each in exact]
    missing = max(1, round(sum(exact))) - sum(quotas)
    for i in sorted(range(len(exact)), key=lambda i: quotas[i] - exact[i])[:missing]:
        quotas[i] += bool(sizes[i])
    return quotas
