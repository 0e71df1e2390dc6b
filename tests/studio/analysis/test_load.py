"""Load and strongest unit against counting by hand."""

import numpy as np
import pytest

from jetmoe.routing import RoutingTrace
from studio.analysis.load import assignments, chance, load, strongest
from tests.builders.traces import make_trace


@pytest.mark.parametrize("unit", ["group", "expert"])
def test_load_is_the_share_of_assignments(unit):
    trace = make_trace()
    counted = np.zeros_like(load(trace, unit))
    for layer, kind, token, slot in np.ndindex(trace.experts.shape):
        expert = trace.experts[layer, kind, token, slot]
        counted[layer, kind, trace.groups[expert] if unit == "group" else expert] += 1
    np.testing.assert_array_equal(assignments(trace, unit), counted)
    np.testing.assert_allclose(load(trace, unit), counted / (40 * 2))
    np.testing.assert_allclose(load(trace, unit).sum(-1), 1)
    assert chance(trace, unit) == 1 / counted.shape[-1]


def test_load_of_nothing_is_zero():
    assert not load(make_trace()[:0], "group").any()


@pytest.mark.parametrize("unit", ["group", "expert"])
def test_strongest_unit_has_the_largest_sum_of_gates(unit):
    trace = make_trace()
    for layer, kind, token in np.ndindex(trace.experts.shape[:3]):
        mass = np.zeros(6, dtype=np.float32)
        for expert, gate in zip(trace.experts[layer, kind, token], trace.gates[layer, kind, token], strict=True):
            mass[trace.groups[expert] if unit == "group" else expert] += np.float32(gate)
        assert strongest(trace, unit)[layer, kind, token] == mass.argmax()


def test_ties_go_to_the_lowest_id():
    trace = make_trace(tokens=1)
    tied = RoutingTrace(
        token_ids=trace.token_ids,
        texts=trace.texts,
        is_prompt=trace.is_prompt,
        experts=np.full((3, 2, 1, 2), [4, 1], dtype=np.uint8),
        gates=np.full((3, 2, 1, 2), 0.5, dtype=np.float16),
        entropy=trace.entropy.copy(),
        kinds=trace.kinds,
        groups=trace.groups,
    )
    assert (strongest(tied, "expert") == 1).all()
    assert (strongest(tied, "group") == 0).all()
