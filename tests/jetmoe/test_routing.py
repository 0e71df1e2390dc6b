"""Recorder and trace: what is recorded is what the routers decided, and a trace survives cutting, joining, saving."""

import numpy as np
import pytest
import torch

from jetmoe import RoutingRecorder, RoutingTrace
from tests.builders.toy_model import toy_model

IDS = torch.randint(3, 99, (1, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    return toy_model()


def record(model, ids=IDS, **options) -> RoutingTrace:
    with torch.no_grad(), RoutingRecorder(model, capacity=64) as recorder:
        model(ids)
    flat = ids.flatten().tolist()
    return recorder.trace(flat, [f"t{i}" for i in flat], True, **options)


def test_trace_equals_a_recount_from_router_logits(model):
    with torch.no_grad():
        logits = torch.stack(model(IDS, output_router_logits=True).router_logits).view(2, 2, 9, 4)
    trace = record(model, with_probs=True)
    picked, experts = logits.topk(2)
    probs = logits.softmax(-1)
    assert np.array_equal(trace.experts, experts.numpy())
    np.testing.assert_allclose(trace.gates, picked.softmax(-1), atol=1e-3)
    np.testing.assert_allclose(trace.probs, probs, atol=1e-3)
    np.testing.assert_allclose(trace.entropy, -(probs * probs.log()).sum(-1), atol=2e-3)
    assert trace.kinds == ("MoA", "MoE") and not trace.is_tied


@pytest.mark.parametrize("norm_topk_prob", [False, True])
def test_gates_of_olmoe_sum_to_one_only_if_normalized(norm_topk_prob):
    model = toy_model(family="olmoe", num_experts=64, num_experts_per_tok=8, norm_topk_prob=norm_topk_prob)
    with torch.no_grad():
        logits = torch.stack(model(IDS, output_router_logits=True).router_logits).view(2, 1, 9, 64)
    trace = record(model)
    gates, experts = logits.softmax(-1).topk(8)
    if norm_topk_prob:
        gates = gates / gates.sum(-1, keepdim=True)
    assert np.array_equal(trace.experts, experts.numpy())
    np.testing.assert_allclose(trace.gates, gates, atol=1e-3)
    assert trace.kinds == ("MoE",) and trace.gates_sum_to_one == norm_topk_prob
    assert RoutingTrace.from_bytes(trace.to_bytes()).gates_sum_to_one == norm_topk_prob


def test_steps_append_and_the_start_is_kept(model):
    whole = record(model)
    with torch.no_grad(), RoutingRecorder(model, capacity=64) as recorder:
        cache = model(IDS[:, :5], use_cache=True).past_key_values
        for i in range(5, 9):
            model(IDS[:, i : i + 1], past_key_values=cache)
    ids = IDS[0].tolist()
    stepped = recorder.trace(ids, [f"t{i}" for i in ids], True)
    assert np.array_equal(stepped.experts, whole.experts)
    tail = recorder.trace(ids[6:], ["x"] * 3, False, start=6)
    assert np.array_equal(tail.experts, whole.experts[:, :, 6:])


def test_padding_is_left_out(model):
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.int64), IDS], dim=1)
    mask = (padded != 0).long()
    with torch.no_grad(), RoutingRecorder(model, capacity=64) as recorder:
        model(padded, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
    trace = recorder.trace(IDS[0].tolist(), ["t"] * 9, True, keep=mask[0].bool().numpy())
    assert np.array_equal(trace.experts, record(model).experts)


def test_off_means_off_and_one_at_a_time(model):
    recorder, second = RoutingRecorder(model, capacity=8), RoutingRecorder(model, capacity=8)
    with recorder, pytest.raises(ValueError, match="already being recorded"):
        second.__enter__()
    with torch.no_grad():
        model(IDS)
    assert int(recorder.length) == 0


def test_ties_name_the_lowest_expert_first():
    model = toy_model(expert_groups=[0, 1, 0, 1])
    for layer in model.model.layers:
        weight = layer.mlp.router.layer.weight
        weight.data[2:] = weight.data[:2]
    trace = record(model)
    moe = trace.experts[:, 1]  # [L, T, K]
    assert (moe[..., 0] < moe[..., 1]).all()
    assert (trace.groups[moe[..., 0]] == trace.groups[moe[..., 1]]).all() and trace.is_tied


def test_slices_and_joins(model):
    trace = record(model, with_probs=True)
    joined = RoutingTrace.concatenate([trace[:4], trace[4:]])
    assert joined.texts == trace.texts and np.array_equal(joined.probs, trace.probs)
    assert len(trace[2:5]) == 3 and trace[2:5].texts == trace.texts[2:5]
    with pytest.raises(ValueError, match="read-only"):
        trace.experts[0] = 0


def test_saves_and_loads(model, tmp_path):
    trace = record(model, with_probs=True)
    trace.save(tmp_path / "trace.safetensors")
    again = RoutingTrace.load(tmp_path / "trace.safetensors")
    assert again.texts == trace.texts and again.kinds == trace.kinds
    for name in ("token_ids", "is_prompt", "experts", "gates", "entropy", "groups", "probs"):
        assert np.array_equal(getattr(again, name), getattr(trace, name)), name


def test_a_file_without_a_word_on_gates_is_of_jetmoe(model):
    from safetensors.numpy import load, save

    data = record(model).to_bytes()
    metadata = {"format": "jetmoe-routing-trace-1", "kinds": "MoA,MoE"}
    assert RoutingTrace.from_bytes(save(load(data), metadata)).gates_sum_to_one


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "foreign", "huge header"])
def test_damaged_bytes_are_refused(model, damage):
    from safetensors.numpy import save

    data = record(model).to_bytes()
    damaged = {
        "cut": data[:-7],
        "garbage": b"\x00" * 200,
        "empty": b"",
        "foreign": save({"x": np.zeros(3)}),
        "huge header": (2**62).to_bytes(8, "little") + data[8:],
    }[damage]
    with pytest.raises(ValueError, match="not a routing trace"):
        RoutingTrace.from_bytes(damaged)
