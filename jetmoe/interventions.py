"""Change what routers decide, to see what experts do: mask or force experts, add to their logits, scale their gates.

    change = Intervention(model.config).mask([3, 7], kind="MoE").scale(0.5, [2], layers=[0, 1])
    with change.on(model):
        model.generate(...)

Compiled and native steps keep what routers did when they were made: make them inside the block.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from jetmoe.config import MoeConfig
from jetmoe.experts.router import RouterChange
from jetmoe.modeling import MoeModel


class Intervention:
    """Changes of the routers of a model. Each method returns a new intervention with one more change.

    All methods take:
        experts: ids of experts.
        layers: the layers to change; by default all.
        kind: the router kind to change; by default all. JetMoE has the kinds "MoA" (attention) and "MoE"
            (feed-forward), OLMoE has "MoE".

    All raise ValueError if the model has no such expert, layer or kind.
    """

    def __init__(self, config: MoeConfig) -> None:
        self.config = config
        shape = config.num_hidden_layers, len(config.family.router_kinds), config.num_local_experts
        self.biases = torch.zeros(shape)  # [L, N, E]
        self.forced = torch.zeros(shape, dtype=torch.bool)  # [L, N, E]
        self.scales = torch.ones(shape)  # [L, N, E]

    def mask(
        self, experts: Sequence[int], layers: Sequence[int] | None = None, kind: str | None = None
    ) -> Intervention:
        """Never select these experts, as if the model had only the others.

        Raises:
            ValueError: a router would be left with fewer experts than it selects, or one of them is forced.
        """
        return self.add(-torch.inf, experts, layers, kind)

    def force(
        self, experts: Sequence[int], layers: Sequence[int] | None = None, kind: str | None = None
    ) -> Intervention:
        """Always select these experts, with the gates of their logits; the strongest others fill the other places.

        Raises:
            ValueError: a router selects fewer experts than that, or one of them is masked.
        """
        changed, places = self._changed(experts, layers, kind)
        changed.forced[places] = True
        return changed._checked()

    def add(
        self, bias: float, experts: Sequence[int], layers: Sequence[int] | None = None, kind: str | None = None
    ) -> Intervention:
        """Add a bias to the logits of these experts, after what was added before."""
        if not bias < torch.inf:
            raise ValueError(f"The bias is {bias}: it must be a number.")
        changed, places = self._changed(experts, layers, kind)
        changed.biases[places] += bias
        return changed._checked()

    def scale(
        self, factor: float, experts: Sequence[int], layers: Sequence[int] | None = None, kind: str | None = None
    ) -> Intervention:
        """Multiply the gates of these experts. A `RoutingTrace` has the gates before that."""
        if not 0 <= factor < torch.inf:
            raise ValueError(f"The factor is {factor}: it must be a number of at least 0.")
        changed, places = self._changed(experts, layers, kind)
        changed.scales[places] *= factor
        return changed

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Change the routers of a model inside the `with` block.

        Raises:
            ValueError: the intervention was made for another model, or another one is active on this model.
        """
        self.apply(model)
        try:
            yield
        finally:
            for router in routers_of(model):
                router.change = None

    def apply(self, model: nn.Module) -> None:
        """Change the routers of a model for good. Raise ValueError as `on` does."""
        routers, rows = routers_of(model), [each.flatten(0, 1) for each in (self.biases, self.forced, self.scales)]
        sizes = [find_decoder(model).config.num_local_experts] * len(routers)
        if sizes != [rows[0].shape[1]] * len(rows[0]):  # [L * N, E]
            raise ValueError("The intervention was made for a model with other layers, routers or experts.")
        if any(router.change is not None for router in routers):
            raise ValueError("Another intervention is active on this model: leave its block first.")
        for router, *change in zip(routers, *rows, strict=True):
            device = next(router.parameters()).device
            # Copies, because tensors that share memory can't be inputs of a compiled layer.
            router.change = RouterChange(*(row.to(device, copy=True) for row in change))

    def _changed(
        self, experts: Sequence[int], layers: Sequence[int] | None, kind: str | None
    ) -> tuple[Intervention, tuple[Tensor, ...]]:
        """Return a copy, and the index of what to change."""
        kinds = self.config.family.router_kinds
        L, N, E = self.biases.shape
        if kind is not None and kind not in kinds:
            raise ValueError(f"There are no {kind!r} routers, only {' and '.join(kinds)}.")
        layers = range(L) if layers is None else layers
        for name, ids, count in (("layer", layers, L), ("expert", experts, E)):
            if wrong := [each for each in ids if not 0 <= each < count]:
                raise ValueError(f"There is no {name} {wrong[0]}: they go from 0 to {count - 1}.")
        changed = copy.copy(self)
        changed.biases, changed.forced, changed.scales = (
            each.clone() for each in (self.biases, self.forced, self.scales)
        )
        kind_ids = range(N) if kind is None else [kinds.index(kind)]
        places = (torch.tensor([*ids], dtype=torch.long) for ids in (layers, kind_ids, experts))
        return changed, torch.meshgrid(*places, indexing="ij")

    def _checked(self) -> Intervention:
        masked, K = self.biases.isneginf(), self.config.num_experts_per_tok
        left = self.forced.shape[-1] - int(masked.sum(-1).max())
        forced = int(self.forced.sum(-1).max())
        if bool((masked & self.forced).any()):
            raise ValueError("An expert can't be both masked and forced.")
        if left < K:
            raise ValueError(f"A router would be left with {left} experts, and it selects {K}.")
        if forced > K:
            raise ValueError(f"A router would be forced to select {forced} experts, and it selects {K}.")
        return self


def routers_of(model: nn.Module) -> list[Any]:
    """Return the routers of a model, in the order of its layers and router kinds."""
    layers: list[Any] = [*find_decoder(model).layers]
    return [router for layer in layers for router in layer.routers()]


def find_decoder(model: nn.Module) -> MoeModel:
    """Return the decoder of a model, below any heads and adapters. Raise ValueError if it is none of ours."""
    decoder = next((module for module in model.modules() if isinstance(module, MoeModel)), None)
    if decoder is None:
        raise ValueError("This is no model of `jetmoe`: import it before the model is loaded.")
    return decoder
