"""Drift between two traces against counting by hand, and the probe that measures it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from studio.analysis.drift import broken_slot_sets, drift
from studio.analysis.load import strongest
from studio.backend.training.drift_probe import DriftProbe
from tests.builders.toy_folder import SIZES, toy_tokenizer
from tests.builders.toy_model import toy_model
from tests.builders.traces import make_trace


def with_probs(seed: int, **changes):
    """Traces of the same tokens."""
    trace = make_trace(seed=seed, **changes)
    probs = np.random.default_rng(seed).dirichlet(np.ones(trace.num_experts), size=trace.entropy.shape)
    return replace(trace, probs=probs.astype(np.float16))


@pytest.mark.parametrize("unit", ["group", "expert"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"groups": 8, "K": 1},
        {"groups": 64, "K": 8, "kinds": ("MoE",), "held": 0.7},
        {"groups": 256, "K": 8, "kinds": ("MoE",)},
    ],
)
def test_drift_counts(changes, unit):
    base, tuned = with_probs(0, **changes), with_probs(1, **changes)
    moved = drift(base, tuned, unit)
    flips = np.zeros(moved.flip_rate.shape)
    overlap = np.zeros(moved.flip_rate.shape)
    for layer, kind, token in np.ndindex(base.entropy.shape):
        units = [
            {int(trace.groups[e]) if unit == "group" else int(e) for e in trace.experts[layer, kind, token]}
            for trace in (base, tuned)
        ]
        overlap[layer, kind] += len(units[0] & units[1]) / len(units[0]) / 40
        both = [strongest(trace, unit)[layer, kind, token] for trace in (base, tuned)]
        flips[layer, kind] += (both[0] != both[1]) / 40
    np.testing.assert_allclose(moved.flip_rate, flips)
    np.testing.assert_allclose(moved.overlap, overlap)
    assert (moved.load_shift > 0).all() and (moved.load_shift < 1).all()


def test_divergence_against_its_definition():
    base, tuned = with_probs(0), with_probs(1)
    p, q = (trace.probs[1, 0].astype(np.float64) for trace in (base, tuned))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    middle = (p + q) / 2
    expected = ((p * np.log(p / middle)).sum(-1) + (q * np.log(q / middle)).sum(-1)).mean() / 2
    np.testing.assert_allclose(drift(base, tuned, "expert").js[1, 0], expected)


def test_nothing_drifts_from_itself():
    moved = drift(with_probs(0), with_probs(0), "group")
    assert (
        not moved.flip_rate.any() and not moved.js.any() and not moved.load_shift.any() and (moved.overlap == 1).all()
    )


def test_zero_probabilities_are_fine():
    base, tuned = with_probs(0), with_probs(1)
    certain = np.zeros_like(base.probs)
    certain[..., 0] = 1
    other = np.zeros_like(base.probs)
    other[..., 1] = 1
    moved = drift(replace(base, probs=certain), replace(tuned, probs=other), "expert")
    np.testing.assert_allclose(moved.js, np.log(2))


def test_traces_of_other_tokens_are_refused():
    base = with_probs(0)
    with pytest.raises(ValueError, match="the same tokens"):
        drift(base, base[:10], "expert")
    with pytest.raises(ValueError, match="with their probabilities"):
        drift(base, make_trace(), "expert")


def test_broken_slot_sets():
    trace = make_trace()
    counted = sum(
        trace.groups[trace.experts[place]][0] != trace.groups[trace.experts[place]][1] for place in np.ndindex(3, 2, 40)
    )
    assert broken_slot_sets(trace) == counted > 0


def test_the_probe_sees_a_change_of_the_model():
    model = toy_model(**SIZES)
    probe = DriftProbe(model, toy_tokenizer(), "some text to route")
    still = probe.measure(model)
    assert still["js"] == 0 and still["flip_rate"] == 0 and "broken_slot_sets" not in still
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.router.layer.weight.neg_()
    moved = probe.measure(model)
    layers = np.asarray(moved["by_layer"]["flip_rate"])
    assert layers[:, 1].min() > 0 and layers[0, 0] == 0, "the first MoA router stands before every changed one"


def test_the_probe_of_a_model_with_one_router_of_64_experts():
    sizes = SIZES | {"num_experts": 64, "num_experts_per_tok": 8}
    model = toy_model(family="olmoe", **sizes)
    probe = DriftProbe(model, toy_tokenizer(), "some text to route")
    with torch.no_grad():
        model.model.layers[1].mlp.gate.weight.neg_()
    moved = probe.measure(model)
    assert np.shape(moved["load"]) == (2, 1, 64) and (moved["unit"], moved["kinds"]) == ("expert", ["MoE"])
    np.testing.assert_allclose(np.sum(moved["load"], axis=-1), 1, atol=1e-3)
    layers = np.asarray(moved["by_layer"]["flip_rate"])
    assert layers[0, 0] == 0 and layers[1, 0] > 0.9
    assert np.asarray(moved["by_layer"]["entropy"]).max() <= np.log(64)
