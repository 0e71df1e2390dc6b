"""Balance and z-loss: known values, per-layer counting, padding, effect on the model's loss. Cross-entropy in chunks
against torch's."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.olmoe.modeling_olmoe import load_balancing_loss_func

from jetmoe import losses
from jetmoe.losses import IGNORED, chunked_cross_entropy, load_balancing_loss, router_z_loss
from tests.builders.toy_model import toy_model


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


def test_one_layer_reads_what_transformers_reads():
    """Of several layers, transformers pools the tokens, so that layers which collapse differently cancel there."""
    logits = torch.randn(50, 8)
    torch.testing.assert_close(load_balancing_loss([logits], 2), load_balancing_loss_func((logits,), 8, 2))
    several = [torch.randn(50, 8) for _ in range(3)]
    alone = [load_balancing_loss_func((layer,), 8, 2) for layer in several]
    torch.testing.assert_close(load_balancing_loss(several, 2), torch.stack(alone).mean())


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


# --- cross-entropy in chunks


def labelled_rows(share, T=21, D=12, V=37, dtype=torch.float32):
    torch.manual_seed(0)
    hidden = torch.randn(T, D, dtype=dtype, requires_grad=True)
    head = nn.Linear(D, V, bias=False, dtype=dtype)
    nn.init.normal_(head.weight)
    labels = torch.randint(V, (T,))
    labels[torch.rand(T) >= share] = IGNORED
    return hidden, head, labels


# Rows of fp32 logits that fit a chunk: less than one, one, some with a rest, all exactly, and more than all.
@pytest.mark.parametrize("rows", [0.5, 1, 4, 7, 21, 100])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("is_hooked", [False, True])
def test_chunked_cross_entropy_equals_torchs(monkeypatch, share, rows, is_hooked):
    monkeypatch.setattr(losses, "CHUNK_BYTES", int(rows * 4 * 37))
    hidden, head, labels = labelled_rows(share)
    if is_hooked:
        head.register_forward_hook(lambda *args: None)
    assert share != 0.0 or (labels == IGNORED).all()
    total = chunked_cross_entropy(hidden, head, labels)
    expected = F.cross_entropy(hidden @ head.weight.t(), labels, ignore_index=IGNORED, reduction="sum")
    torch.testing.assert_close(total, expected)
    assert total.dtype == torch.float32
    grads, expected_grads = (torch.autograd.grad(one * 0.7, [hidden, head.weight]) for one in (total, expected))
    for grad, other in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, other, rtol=1e-5, atol=1e-6)


def test_chunked_cross_entropy_in_bf16(monkeypatch):
    """Nearer to the exact loss and gradients than rounded logits and slopes can be off."""
    monkeypatch.setattr(losses, "CHUNK_BYTES", 5 * 4 * 37)
    hidden, head, labels = labelled_rows(0.8, dtype=torch.bfloat16)
    total = chunked_cross_entropy(hidden, head, labels)
    wide = [one.detach().float().requires_grad_() for one in (hidden, head.weight)]
    expected = F.cross_entropy(wide[0] @ wide[1].t(), labels, ignore_index=IGNORED, reduction="sum")
    torch.testing.assert_close(total, expected, rtol=2**-8, atol=0)
    grads, expected_grads = torch.autograd.grad(total, [hidden, head.weight]), torch.autograd.grad(expected, wide)
    for grad, other in zip(grads, expected_grads, strict=True):
        assert grad.dtype == torch.bfloat16
        torch.testing.assert_close(grad.float(), other, rtol=2**-6, atol=2**-6 * float(other.abs().max()))


@pytest.mark.parametrize("frozen", ["hidden", "head", "both"])
def test_only_what_learns_gets_a_gradient(frozen):
    hidden, head, labels = labelled_rows(0.5)
    hidden.requires_grad_(frozen == "head")
    head.requires_grad_(frozen == "hidden")
    total = chunked_cross_entropy(hidden, head, labels)
    torch.testing.assert_close(total, F.cross_entropy(hidden @ head.weight.t(), labels, reduction="sum"))
    assert total.requires_grad == (frozen != "both")
    if total.requires_grad:
        total.backward()
        assert (hidden.grad is None, head.weight.grad is None) == (frozen == "hidden", frozen == "head")


@pytest.mark.parametrize("count", [None, 17, torch.tensor(17)])
@pytest.mark.parametrize("balanced", [False, True])
def test_loss_without_logits_is_the_plain_loss(monkeypatch, balanced, count):
    """Loss and every gradient, with the number of labels of a whole accumulated batch and without."""
    monkeypatch.setattr(losses, "CHUNK_BYTES", 10 * 4 * 99)
    model = toy_model()
    ids = torch.randint(3, 99, (3, 12))
    labels = ids.masked_fill(torch.rand(ids.shape) < 0.4, IGNORED)
    results = []
    for skip_logits in (False, True):
        output = model(
            ids, labels=labels, num_items_in_batch=count, output_router_logits=balanced, skip_logits=skip_logits
        )
        assert (output.logits is None) == skip_logits
        results.append((output.loss, torch.autograd.grad(output.loss, list(model.parameters()))))
    (loss, grads), (expected, expected_grads) = results
    torch.testing.assert_close(loss, expected)
    for grad, other in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, other, rtol=1e-4, atol=1e-6)


def test_loss_without_labels_is_what_it_is_with_logits():
    """Of a batch in which no token is to be learned: nothing to divide by, unless the whole batch has some."""
    model, ids = toy_model(), torch.randint(3, 99, (1, 8))
    labels = torch.full_like(ids, IGNORED)
    for count in (None, 5):
        skipped, plain = (
            model(ids, labels=labels, num_items_in_batch=count, skip_logits=skip).loss for skip in (True, False)
        )
        torch.testing.assert_close(skipped, plain, equal_nan=True)
