"""Flips against the base, counted by hand."""

from dataclasses import replace

import numpy as np
import pytest

from studio.analysis.flips import flip_shares, flips
from tests.builders.traces import make_trace


def strongest_by_hand(trace, place: tuple[int, int, int], unit: str) -> int:
    sums = np.zeros(6, dtype=np.float32)
    for expert, gate in zip(trace.experts[place], trace.gates[place], strict=True):
        sums[trace.groups[expert] if unit == "group" else expert] += gate
    return int(sums.argmax())


@pytest.mark.parametrize("unit", ["group", "expert"])
def test_a_flip_is_another_strongest_unit(unit):
    base, trace = make_trace(seed=0), make_trace(seed=1)
    found = flips(base, trace, unit)
    for place in np.ndindex(3, 2, 40):
        units = [strongest_by_hand(each, place, unit) for each in (base, trace)]
        assert found[place] == (units[0] != units[1])
    assert found.any() and not found.all()


@pytest.mark.parametrize("unit", ["group", "expert"])
def test_shares_count_flips(unit):
    base, trace = make_trace(seed=0), make_trace(seed=1)
    shares, found = flip_shares(base, trace, unit), flips(base, trace, unit)
    assert shares.all == pytest.approx(found.sum() / (3 * 2 * 40))
    assert shares.by_kind == pytest.approx({"MoA": found[:, 0].sum() / 120, "MoE": found[:, 1].sum() / 120})


def test_shares_of_one_kind_of_router():
    base, trace = (make_trace(seed=seed, groups=64, K=8, kinds=("MoE",), held=0.7) for seed in (0, 1))
    shares = flip_shares(base, trace, "expert")
    assert shares.by_kind == {"MoE": shares.all}


def test_a_group_that_stays_strongest_does_not_flip_with_its_experts():
    trace = make_trace(groups=(0, 0, 0, 0, 0, 0))
    assert flips(trace, make_trace(seed=1, groups=trace.groups), "expert").any()
    assert not flips(trace, make_trace(seed=1, groups=trace.groups), "group").any()


def test_only_traces_of_the_same_tokens_and_routers_are_compared():
    trace = make_trace()
    others = [
        trace[:10],
        replace(trace, token_ids=trace.token_ids + 1),
        replace(trace, groups=np.arange(6, dtype=np.uint8)),
        replace(trace, experts=trace.experts[:2], gates=trace.gates[:2], entropy=trace.entropy[:2]),
    ]
    for other in others:
        with pytest.raises(ValueError, match="the same tokens in the same routers"):
            flips(other, trace, "expert")
    with pytest.raises(ValueError, match="no tokens"):
        flip_shares(trace[:0], trace[:0], "expert")
