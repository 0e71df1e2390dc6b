"""The expert layer against the dumbest correct code: every path, outputs and gradients."""

import pytest
import torch

from jetmoe.experts import JetMoeExperts, Routing, chosen_linear, combine, dispatch, permute, sorted_linear


def dumb(weight, tokens, routing):
    """One token, one expert at a time."""
    rows = []
    for t, chosen in enumerate(routing.experts.tolist()):
        for e in chosen:
            rows.append(weight[e] @ tokens[t])
    return torch.stack(rows)


def make(T, E, K, seed=0):
    torch.manual_seed(seed)
    experts = JetMoeExperts(E, 8, 6)
    torch.nn.init.normal_(experts.weight)
    logits = torch.randn(T, E)
    picked, ids = logits.topk(K)
    tokens = torch.randn(T, 8, requires_grad=True)
    return experts, tokens, Routing(logits, ids, picked.softmax(-1))


@pytest.mark.parametrize(("T", "E", "K"), [(1, 4, 2), (7, 4, 1), (7, 4, 4), (33, 12, 3), (2, 64, 8)])
@pytest.mark.parametrize("path", ["sorted", "chosen"])
def test_products_and_gradients(T, E, K, path):
    """Also with experts that no token picks (E = 64)."""
    experts, tokens, routing = make(T, E, K)
    expected = dumb(experts.weight, tokens, routing)
    if path == "sorted":
        rows = sorted_linear(experts, dispatch(tokens, routing), routing)
        rows = permute(rows, routing.sorted().inverse, routing.sorted().order)
    else:
        repeated = tokens.unsqueeze(1).expand(-1, K, -1).reshape(T * K, -1)
        rows = chosen_linear(experts, repeated, routing)
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-5)

    with torch.no_grad():
        if path == "sorted":
            again = sorted_linear(experts, dispatch(tokens, routing), routing)
            again = permute(again, routing.sorted().inverse, routing.sorted().order)
            torch.testing.assert_close(again, expected, rtol=1e-5, atol=1e-5)

    weights = torch.randn_like(rows)
    inputs = [experts.weight, tokens]
    grads = torch.autograd.grad((rows * weights).sum(), inputs)
    expected_grads = torch.autograd.grad((expected * weights).sum(), inputs)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-5, atol=1e-5)


def test_sizes_count_the_assignments():
    _, _, routing = make(33, 12, 3)
    expected = [int((routing.experts == e).sum()) for e in range(12)]
    assert routing.sorted().sizes() == expected


def test_combine_weighs_by_gate():
    _, _, routing = make(5, 4, 2)
    rows = torch.randn(10, 6)
    expected = torch.stack([sum(routing.gates[t, k] * rows[2 * t + k] for k in range(2)) for t in range(5)])
    torch.testing.assert_close(combine(rows, routing.gates), expected)
