"""What the routers of all families share: selecting the K largest of E scores, and changes of what is selected."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class RouterChange(NamedTuple):
    """What an `Intervention` (`jetmoe/interventions.py`) changes in one router."""

    bias: Tensor  # [E] fp32, added to the logits
    forced: Tensor  # [E] bool, selected before all others
    scale: Tensor  # [E] fp32, by which gates are multiplied


class Router(nn.Module):
    """Base class of routers."""

    top_k: int
    change: RouterChange | None = None

    def biased(self, logits: Tensor) -> Tensor:
        return logits if self.change is None else logits + self.change.bias  # [T, E]

    def select(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores and the ids of the selected experts, both `[T, K]`, strongest first."""
        if self.change is None:
            picked, experts = scores.topk(self.top_k, dim=-1)
            return picked, experts
        # A masked expert must lose even to experts with a probability of 0.
        ranked = scores.masked_fill(self.change.bias.isneginf(), -torch.inf).masked_fill(self.change.forced, torch.inf)
        experts = ranked.topk(self.top_k, dim=-1).indices  # [T, K]
        picked, order = scores.gather(-1, experts).sort(dim=-1, descending=True)
        return picked, experts.gather(-1, order)

    def scaled(self, gates: Tensor, experts: Tensor) -> Tensor:
        return gates if self.change is None else gates * self.change.scale[experts]  # [T, K]
