"""Fit router rows to text without backpropagation through the model.

    inputs = collect_router_inputs(dense_model, token_ids)              # [L, 2, T, D]
    rows = fit_router_rows(inputs[0, 1], replicas=4)                    # [m, D]

The inputs of the upcycled model's routers are the norm outputs of the dense model's blocks. Spherical k-means clusters
the standardized inputs, balanced by Sinkhorn. A softmax regression without bias then learns to predict the cluster.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

CHUNK = 512
"""Tokens per forward pass of the dense model, and thus the context length of the router inputs."""


@torch.inference_mode()
def collect_router_inputs(model: PreTrainedModel, token_ids: Tensor) -> Tensor:
    """Return the inputs of the upcycled model's routers, `[L, 2, T, D]` float16, MoA then MoE."""
    seen: list[Tensor] = []
    norms = [norm for layer in model.model.layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
    hooks = [norm.register_forward_hook(lambda module, args, out: seen.append(out[0].half())) for norm in norms]
    inputs = torch.empty(len(norms), len(token_ids), model.config.hidden_size, dtype=torch.float16)  # [L * 2, T, D]
    try:
        for start in range(0, len(token_ids), CHUNK):
            seen.clear()
            model.model(token_ids[None, start : start + CHUNK], use_cache=False)
            torch.stack(seen, out=inputs[:, start : start + CHUNK])
    finally:
        for hook in hooks:
            hook.remove()
    return inputs.unflatten(0, (-1, 2))  # [L, 2, T, D]


def fit_router_rows(inputs: Tensor, replicas: int, seed: int = 0) -> Tensor:
    """Return router rows `[m, D]` whose argmax splits inputs `[T, D]` into m balanced clusters."""
    inputs = inputs.float()
    return softmax_regression(inputs, balanced_clusters(inputs, replicas, seed), replicas)


def balanced_clusters(inputs: Tensor, count: int, seed: int = 0, starts: int = 4) -> Tensor:
    """Return cluster ids `[T]` of inputs `[T, D]`, T / count per cluster; the best of several spherical k-means runs.

    Inputs are standardized first. Otherwise a few channels with outlier activations determine the clusters, which in
    the middle layers are then unrelated to the text.
    """
    centred = inputs - inputs.mean(0)
    points = F.normalize(centred / _spread(inputs), dim=-1)  # [T, D]
    generator = torch.Generator().manual_seed(seed)
    scores = [points @ _spherical_k_means(points, count, generator).T for _ in range(starts)]  # of [T, m]
    return _balanced_argmax(max(scores, key=lambda score: (sinkhorn(score) * score).sum().item()))


def _spherical_k_means(points: Tensor, count: int, generator: torch.Generator, steps: int = 15) -> Tensor:
    centres = points[torch.randperm(len(points), generator=generator)[:count]]  # [m, D]
    for _ in range(steps):
        centres = F.normalize(sinkhorn(points @ centres.T).T @ points, dim=-1)
    return centres


def _balanced_argmax(scores: Tensor, steps: int = 150) -> Tensor:
    """Return the best cluster of each row of scores `[T, m]`, with a penalty on clusters that are too large."""
    T, m = scores.shape
    price = torch.zeros(m)
    for step in range(steps):
        load = (scores - price).argmax(-1).bincount(minlength=m) / T
        price += 0.3 * 0.97**step * (load - 1 / m)
    return (scores - price).argmax(-1)


def sinkhorn(scores: Tensor, temperature: float = 0.05, steps: int = 20) -> Tensor:
    """Return soft assignments `[T, m]`: rows sum to 1, columns to T / m."""
    kernel = (scores / temperature).exp()
    share = scores.shape[0] / scores.shape[1]
    rows = torch.ones(len(scores))  # [T]
    for _ in range(steps):
        columns = share / (rows @ kernel)  # [m]
        rows = 1 / (kernel @ columns)
    return rows[:, None] * kernel * columns


def softmax_regression(inputs: Tensor, labels: Tensor, count: int, decay: float = 1e-2, steps: int = 30) -> Tensor:
    """Fit a softmax regression without bias from inputs `[T, D]` to labels `[T]`; return its weights `[m, D]`."""
    spread = _spread(inputs)
    scaled = inputs / spread
    weights = torch.zeros(count, inputs.shape[1], requires_grad=True)  # [m, D]
    optimizer = torch.optim.LBFGS([weights], max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(scaled @ weights.T, labels) + decay * weights.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return (weights / spread).detach()


def _spread(inputs: Tensor) -> Tensor:
    """Return the standard deviation `[D]` of each channel, with a floor so that dead channels are not amplified."""
    spread = inputs.std(0)
    return spread.clamp_min(0.1 * spread.median().item())
