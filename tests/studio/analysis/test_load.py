"""Load and strongest unit against counting by hand."""

from dataclasses import replace

import numpy as np
import pytest

from jetmoe.routing import RoutingTrace
from studio.analysis.load import assignments, chance, load, strongest
from tests.builders.traces import make_trace

TRACES = [
    make_trace(),
    make_trace(groups=8, K=1, held=0.6),
    make_trace(groups=16, kinds=("MoE",)),
    make_trace(groups=64, K=8, kinds=("MoE",), held=0.7),
    make_trace(groups=[*range(64)] * 4, K=8),
    make_trace(groups=256, K=8, tokens=20, held=0.3),
]


def unit_at(trace: RoutingTrace, unit: str, place: tuple) -> int:
    expert = trace.experts[place]
    return int(trace.groups[expert] if unit == "group" else expert)


@pytest.mark.parametrize("unit", ["group", "expert"])
@pytest.mark.parametrize("trace", TRACES, ids=lambda trace: f"{trace.num_experts} experts")
def test_load_is_the_share_of_assignments(trace, unit):
    T, K = trace.experts.shape[2:]
    counted = np.zeros_like(load(trace, unit))
    for place in np.ndindex(trace.experts.shape):
        counted[(*place[:2], unit_at(trace, unit, place))] += 1
    np.testing.assert_array_equal(assignments(trace, unit), counted)
    np.testing.assert_allclose(load(trace, unit), counted / (T * K))
    np.testing.assert_allclose(load(trace, unit).sum(-1), 1)
    assert chance(trace, unit) == 1 / counted.shape[-1]


def test_load_of_nothing_is_zero():
    assert not load(make_trace()[:0], "group").any()
    assert strongest(make_trace()[:0], "group").shape == (3, 2, 0)


@pytest.mark.parametrize("unit", ["group", "expert"])
@pytest.mark.parametrize("trace", TRACES, ids=lambda trace: f"{trace.num_experts} experts")
def test_strongest_unit_has_the_largest_sum_of_gates(trace, unit):
    for place in np.ndindex(trace.experts.shape[:3]):
        mass = np.zeros(256, dtype=np.float32)
        for k, gate in enumerate(trace.gates[place]):
            mass[unit_at(trace, unit, (*place, k))] += np.float32(gate)
        assert strongest(trace, unit)[place] == mass.argmax()


def test_ties_go_to_the_lowest_id():
    tied = replace(
        make_trace(tokens=1),
        experts=np.full((3, 2, 1, 2), [4, 1], dtype=np.uint8),
        gates=np.full((3, 2, 1, 2), 0.5, dtype=np.float16),
    )
    assert (strongest(tied, "expert") == 1).all()
    assert (strongest(tied, "group") == 0).all()
