"""Traces by id: they grow, and the ones that were used longest ago go first."""

import numpy as np

from studio.backend.chat.alternatives import Alternative
from studio.ui.common.trace_store import TraceStore
from tests.builders.traces import make_trace


def test_a_trace_grows_row_by_row():
    store, trace = TraceStore(), make_trace()
    trace_id = store.open()
    assert store.get(trace_id) is None
    for token in range(len(trace)):
        store.append(trace_id, trace[token : token + 1])
        assert len(store.get(trace_id)) == token + 1
    np.testing.assert_array_equal(store.get(trace_id).experts, trace.experts)


def test_the_one_used_longest_ago_is_dropped():
    store = TraceStore(capacity_bytes=2 * 5000)
    first, second = store.open(make_trace()), store.open(make_trace())
    store.get(first)
    third = store.open(make_trace())
    assert store.get(second) is None
    assert store.get(first) is not None and store.get(third) is not None
    store.append(second, make_trace())
    assert store.get(second) is None, "a dropped trace does not come back in part"


def test_ids_are_long_random_and_known_to_nobody_else():
    store = TraceStore()
    assert len({store.open() for _ in range(100)}) == 100
    assert store.get("") is None and store.get("0" * 32) is None


def test_alternatives_are_their_owners_and_go_with_the_trace():
    store = TraceStore(capacity_bytes=12_000)
    mine = store.open(make_trace(), "me")
    found = (Alternative(7, "x", -0.5, True, False),)
    store.keep(mine, 3, found)
    assert store.alternatives(mine, 3, "me") == store.alternatives(mine, 3) == found
    assert store.alternatives(mine, 3, "other") == store.alternatives(mine, 4) == store.alternatives("", 3) == ()
    for _ in range(5):
        store.open(make_trace())
    store.keep(mine, 4, found)
    assert store.alternatives(mine, 3) == store.alternatives(mine, 4) == ()


def test_the_bases_trace_goes_with_the_trace():
    store = TraceStore(capacity_bytes=2 * 5000)
    first = store.open(make_trace())
    assert store.base(first) is None
    store.compare(first, make_trace(seed=1))
    assert store.base(first) is not None
    second = store.open(make_trace())
    assert store.get(first) is None and store.base(first) is None, "both together are as large as two traces"
    store.compare(first, make_trace())
    assert store.base(first) is None and store.get(second) is not None
