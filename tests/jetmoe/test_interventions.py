"""Interventions: masked, forced, biased and scaled experts, against routers whose weights say the same."""

from functools import partial

import peft
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import StaticCache

from jetmoe import RoutingRecorder
from jetmoe.decode import compiled_step, step
from jetmoe.interventions import Intervention
from jetmoe.lora import lora_config
from jetmoe.native.step import NativeStep
from tests.builders.native_steps import assert_equal
from tests.builders.toy_model import TOYS, toy_model

FAMILIES = list(TOYS)
IDS = torch.randint(3, 99, (2, 12), generator=torch.Generator().manual_seed(0))
E = 6


def toy(family, **changes):
    return toy_model(family=family, **{"num_local_experts" if family == "jetmoe" else "num_experts": E}, **changes)


@torch.no_grad()
def forward(model, ids=IDS):
    """Logits, and the trace."""
    with RoutingRecorder(model, 64) as recorder:
        logits = model(ids).logits
    return logits, recorder.trace([0] * ids.numel(), ["x"] * ids.numel(), True)


# --- each kind of change


@pytest.mark.parametrize("family", FAMILIES)
def test_masked_experts_are_never_selected_and_the_rest_is_a_model_without_them(family):
    """The experts 4 and 5 are masked: their weights, even of infinite size, mean nothing any more."""
    model = toy(family)
    change = Intervention(model.config).mask([4, 5])
    before, _ = forward(model)
    with change.on(model):
        masked, trace = forward(model)
        for name, weight in model.named_parameters():
            if name.endswith(model.config.family.expert_weights):
                weight.data[4:] = torch.inf
        again, _ = forward(model)
    assert trace.experts.max() == 3 and not torch.equal(before, masked) and torch.equal(masked, again)
    if trace.gates_sum_to_one:
        assert abs(trace.gates.astype("float32").sum(-1) - 1).max() < 2e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_and_a_kind_alone_are_changed(family):
    model = toy(family)
    kind = model.config.family.router_kinds[-1]
    with Intervention(model.config).mask([0, 1, 2], layers=[1], kind=kind).on(model):
        _, trace = forward(model)
    *others, changed = trace.experts.reshape(-1, *trace.experts.shape[2:])
    assert changed.min() == 3 and all(each.min() == 0 for each in others)


@pytest.mark.parametrize("family", FAMILIES)
def test_forced_experts_are_always_selected_with_the_gates_of_their_logits(family):
    model = toy(family)
    _, plain = forward(model)
    with Intervention(model.config).force([5], layers=[0]).on(model):
        _, trace = forward(model)
    assert (trace.experts[0] == 5).any(-1).all()
    assert (trace.gates[..., :-1] >= trace.gates[..., 1:]).all(), "strongest first"
    chosen = (plain.experts[0, 0] == 5).any(-1)
    assert chosen.any() and not chosen.all()
    assert (trace.gates[0, 0][chosen] == plain.gates[0, 0][chosen]).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bias_is_added_to_the_logits(family):
    model = toy(family)
    (router, *_), (other, *_) = (layer.routers() for layer in model.model.layers)
    rows = torch.randn(7, 32)
    logits, *_ = router(rows)
    others, *_ = other(rows)
    added = torch.zeros(E)
    added[1] = 0.7
    with Intervention(model.config).add(0.7, [1]).add(0.3, [1], layers=[1]).on(model):
        torch.testing.assert_close(router(rows)[0], logits + added)
        torch.testing.assert_close(other(rows)[0], others + added / 0.7)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_scale_multiplies_gates(family):
    """Gates of zero leave no more than the bias of a mixture; gates of one change nothing."""
    model = toy(family)
    (router, *_), rows = model.model.layers[0].routers(), torch.randn(7, 32)
    logits, experts, gates = router(rows)
    with Intervention(model.config).scale(0.5, [2]).scale(0.5, [2]).on(model):
        again, same, scaled = router(rows)
    assert torch.equal(logits, again) and torch.equal(experts, same)
    torch.testing.assert_close(scaled, gates * torch.where(experts == 2, 0.25, 1.0))
    before, _ = forward(model)
    with Intervention(model.config).scale(1.0, range(E)).on(model):
        assert torch.equal(forward(model)[0], before)


# --- where a model is used


def case(seed, family):
    """A model, and an intervention that masks, forces, biases and scales, in some layers or all."""
    random = torch.Generator().manual_seed(seed)
    model, order = toy(family, seed=seed % 3), torch.randperm(E, generator=random).tolist()
    kind = model.config.family.router_kinds[-1]
    change = Intervention(model.config).mask(order[:2], layers=[seed % 2]).force(order[2:3], kind=kind)
    return model, change.add(float(torch.randn((), generator=random)), order[3:5]).scale(1.7, order[4:])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.builds(case, st.integers(0, 99), st.sampled_from(FAMILIES)))
def test_the_native_step_is_the_eager_one(made):
    model, change = made
    with change.on(model):
        assert_equal(model)
    assert_equal(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_on_the_routers_is_changed_too(family):
    model = toy(family)
    adapted = peft.get_peft_model(model, lora_config("router", r=2, family=family))
    with Intervention(model.config).mask([0]).on(adapted):
        _, trace = forward(model)
        NativeStep(model)
    assert trace.experts.min() == 1


@pytest.mark.compiles
def test_a_compiled_step_is_changed_too():
    """One layer is compiled for all, also if only some are changed."""
    model, change = toy("jetmoe"), Intervention(toy("jetmoe").config).mask([0, 1], layers=[1]).force([3], layers=[0])

    def run(run_step):
        cache = StaticCache(model.config, max_cache_len=8)
        with torch.no_grad():
            model(IDS[:1, :4], past_key_values=cache)
        return run_step(torch.tensor([[5]]), torch.tensor([[4]]), cache)

    with change.on(model):
        eager, compiled = run(partial(step, model)), run(compiled_step(model, backend="eager"))
    torch.testing.assert_close(compiled, eager)
    assert not torch.allclose(eager, run(partial(step, model)))


def test_gradients_pass():
    model = toy("olmoe")
    with Intervention(model.config).mask([0]).scale(0.5, [1]).on(model):
        model(IDS, labels=IDS).loss.backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


# --- bad input


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda none: none.mask([6]), "There is no expert 6: they go from 0 to 5."),
        (lambda none: none.mask([-1]), "There is no expert -1"),
        (lambda none: none.force([0], layers=[2]), "There is no layer 2: they go from 0 to 1."),
        (lambda none: none.add(1.0, [0], kind="FFN"), "There are no 'FFN' routers, only MoA and MoE."),
        (lambda none: none.mask(range(5)), "A router would be left with 1 experts, and it selects 2."),
        (lambda none: none.force([0, 1]).force([2]), "A router would be forced to select 3 experts, and it selects 2."),
        (lambda none: none.mask([1]).force([1]), "An expert can't be both masked and forced."),
        (lambda none: none.add(float("nan"), [1]), "The bias is nan"),
        (lambda none: none.scale(-1.0, [1]), "The factor is -1.0: it must be a number of at least 0."),
    ],
)
def test_what_a_model_does_not_have_is_named(change, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        change(Intervention(toy("jetmoe").config))


def test_one_intervention_at_a_time_and_only_on_its_model():
    model = toy("jetmoe")
    change = Intervention(model.config).mask([0])
    before, _ = forward(model)
    with pytest.raises(RuntimeError, match="inside"), change.on(model):
        with pytest.raises(ValueError, match="Another intervention is active"), change.on(model):
            pass
        raise RuntimeError("inside")
    assert torch.equal(forward(model)[0], before), "nothing is left of it"
    for other in (toy("olmoe"), toy_model()):
        with pytest.raises(ValueError, match="for a model with other layers"), change.on(other):
            pass
    with pytest.raises(ValueError, match="no model of `jetmoe`"), change.on(torch.nn.Linear(2, 2)):
        pass
