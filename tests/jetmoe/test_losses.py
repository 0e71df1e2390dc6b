"""Balance and z-loss: known values, per-layer counting, padding, effect on the model's loss."""

import pytest
import torch

from jetmoe.losses import load_balancing_loss, router_z_loss
from tests.jetmoe.toy import toy_model


def collapsed(expert: int, T: int = 32, E: int = 4) -> torch.Tensor:
    logits = torch.zeros(T, E)
    logits[:, expert] = 50.0
    return logits


def test_even_routing_reads_top_k():
    logits = torch.eye(4).repeat(8, 1) * 1e-3
    assert load_balancing_loss([logits], top_k=1) == pytest.approx(1.0, abs=1e-3)
    assert load_balancing_loss([torch.eye(8).repeat(8, 1) * 1e-3], top_k=2) == pytest.approx(2.0, abs=1e-2)


def test_collapse_reads_the_number_of_experts():
    assert load_balancing_loss([collapsed(1)], top_k=1) == pytest.approx(4.0)


def test_layers_that_collapse_differently_do_not_cancel():
    """Pooled over layers these four look perfectly even."""
    layers = [collapsed(e) for e in range(4)]
    assert load_balancing_loss(layers, top_k=1) == pytest.approx(4.0)


def test_padding_does_not_count():
    logits = torch.randn(2 * 6, 4)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    kept = logits[mask.flatten() == 1]
    torch.testing.assert_close(load_balancing_loss([logits], 2, mask), load_balancing_loss([kept], 2))
    torch.testing.assert_close(router_z_loss([logits], mask), router_z_loss([kept]))


def test_z_loss_is_the_mean_squared_logsumexp():
    logits = torch.randn(9, 4)
    expected = sum(float(torch.log(torch.exp(row).sum())) ** 2 for row in logits) / 9
    assert router_z_loss([logits]) == pytest.approx(expected, rel=1e-5)


def test_both_are_off_unless_asked_for():
    model = toy_model(z_loss_coef=0.001)
    ids = torch.randint(3, 99, (2, 12))
    plain = model(ids, labels=ids)
    assert plain.aux_loss is None and plain.router_logits is None
    asked = model(ids, labels=ids, output_router_logits=True)
    z_loss = router_z_loss(asked.router_logits)
    expected = plain.loss + 0.01 * asked.aux_loss + 0.001 * z_loss
    torch.testing.assert_close(asked.loss, expected)


def test_balance_loss_reaches_every_router():
    model = toy_model()
    ids = torch.randint(3, 99, (2, 12))
    model(ids, output_router_logits=True).aux_loss.backward()
    for layer in model.model.layers:
        assert layer.mlp.router.layer.weight.grad.abs().sum() > 0
        assert layer.self_attention.experts.router.layer.weight.grad.abs().sum() > 0
