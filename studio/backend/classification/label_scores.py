"""Score each label after each prompt: one pass over the prompts, then one over all their labels.

    scorer = LabelScorer(model, prompts.shared_ids)
    scorer.score([prompts.of(text) for text in texts])       # [prompts, labels], log-probability of the whole label

The shared prefix of a template is computed once. Score prompts of similar length together (`like_lengths`): rows are
padded on the right, and a pass over many tokens takes little longer than one over few.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from jetmoe import RoutingRecorder
from jetmoe.linear import project
from jetmoe.modeling import MoeForCausalLM
from studio.backend.chat.decoder import PREFILL_TOKENS
from studio.backend.classification.label_prompt import LabelPrompt

MOST_TOKENS = 1024
"""Maximum prompt tokens of one pass; more are no faster on CPUs or GPUs."""
# Limits of one pass over labels: attention keys of all rows, and positions with logits.
MOST_KEYS = 32_768
MOST_POSITIONS = 512


def like_lengths(prompts: Sequence[LabelPrompt]) -> list[list[int]]:
    """Return batches of indices of prompts with similar length."""
    batches: list[list[int]] = []
    for i in sorted(range(len(prompts)), key=lambda i: prompts[i].unread):
        if not batches or (len(batches[-1]) + 1) * prompts[i].unread > MOST_TOKENS:
            batches.append([])
        batches[-1].append(i)
    return batches


class LabelScorer:
    """Score labels with one model.

    Args:
        shared_ids: the shared prefix of all prompts.
        cancelled: called between the chunks of long prompts.
    """

    def __init__(
        self, model: MoeForCausalLM, shared_ids: Sequence[int], cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        self.model, self.cancelled = model, cancelled
        self._shared_ids = list(shared_ids)
        self._shared: list[DynamicLayer] | None = None

    @torch.no_grad()
    def score(self, prompts: Sequence[LabelPrompt], recorder: RoutingRecorder | None = None) -> np.ndarray | None:
        """Return float64 `[prompts, labels]`, the log-probability of each label; None if cancelled.

        Args:
            recorder: for a single prompt; records the routing of its tokens from `shared` on.
        """
        shared = min(prompt.shared for prompt in prompts)
        layers = self._begin(shared, len(prompts))
        logits = self._read([prompt.token_ids[shared:] for prompt in prompts], layers, recorder)  # [prompts, V]
        if logits is None:
            return None
        first = torch.tensor([[label[0] for label in prompt.labels] for prompt in prompts], device=logits.device)
        sums = logits.log_softmax(-1).gather(-1, first).double()  # [prompts, labels]
        for pairs in _passes(prompts):
            rows, labels = zip(*pairs, strict=True)
            sums[list(rows), list(labels)] += self._rest(prompts, pairs, layers)
        log_probs: np.ndarray = sums.cpu().numpy()
        return log_probs

    def _begin(self, length: int, rows: int) -> list[DynamicLayer]:
        """Return cache layers that hold the first `length` shared tokens."""
        if not length:
            return [DynamicLayer() for _ in range(self.model.config.num_hidden_layers)]
        if self._shared is None:
            self._shared = self._begin(0, 1)
            self._forward(torch.tensor([self._shared_ids]), torch.tensor([0]), self._shared)
        return [_Branch(layer, length, rows) for layer in self._shared]

    def _read(
        self, prompts: list[list[int]], layers: list[DynamicLayer], recorder: RoutingRecorder | None
    ) -> Tensor | None:
        """Return the logits `[prompts, V]` after each prompt; None if cancelled.

        Rows are padded on the right, where no token attends to the padding.
        """
        ids, lengths = _padded(prompts)  # [prompts, S], [prompts]
        before, states = layers[0].get_seq_length(), []
        for start in range(0, ids.shape[1], PREFILL_TOKENS):
            if self.cancelled():
                return None
            piece = ids[:, start : start + PREFILL_TOKENS]
            states.append(self._forward(piece, torch.full_like(lengths, before + start), layers, recorder=recorder))
        hidden = torch.cat(states, dim=1)  # [prompts, S, D]
        last = hidden[torch.arange(len(hidden)), lengths - 1]  # [prompts, D]
        return project(self.model.lm_head, last).float()

    def _rest(self, prompts: Sequence[LabelPrompt], pairs: list[tuple[int, int]], layers: list[DynamicLayer]) -> Tensor:
        """Return float64 `[pairs]`, the log-probability of each label's tokens after its first one."""
        rows = torch.tensor([row for row, _ in pairs])
        labels, lengths = _padded([prompts[row].labels[label] for row, label in pairs])  # [pairs, S + 1], [pairs]
        begins = torch.tensor([len(prompts[row].token_ids) for row, _ in pairs])
        ends: list[DynamicLayer] = [_End(layer, rows) for layer in layers]
        # Mask the padding between the end of a prompt and its label.
        keys = torch.arange(layers[0].get_seq_length() + labels.shape[1] - 1)
        visible = (keys < begins[:, None]) | (keys >= layers[0].get_seq_length())  # [pairs, keys]
        hidden = self._forward(labels[:, :-1], begins, ends, None if visible.all() else visible)  # [pairs, S, D]
        log_probs = project(self.model.lm_head, hidden).float().log_softmax(-1)  # [pairs, S, V]
        found = log_probs.gather(-1, labels[:, 1:, None].to(log_probs.device)).squeeze(-1).double()  # [pairs, S]
        real = torch.arange(1, labels.shape[1]) < lengths[:, None]  # [pairs, S]
        return (found * real.to(found.device)).sum(-1)

    def _forward(
        self,
        ids: Tensor,
        begins: Tensor,
        layers: list[DynamicLayer],
        visible: Tensor | None = None,
        recorder: RoutingRecorder | None = None,
    ) -> Tensor:
        """Return the last hidden states `[rows, S, D]` of tokens `[rows, S]` that start at positions `[rows]`."""
        device = self.model.device
        positions = begins[:, None] + torch.arange(ids.shape[1])  # [rows, S]
        return self.model.model(
            input_ids=ids.to(device),
            attention_mask=None if visible is None else visible.to(device),
            position_ids=positions.to(device),
            past_key_values=Cache(layers=layers),  # type: ignore[arg-type]
            use_cache=True,
            recorder=recorder,
        ).last_hidden_state


class _Branch(DynamicLayer):
    """Continue the first `length` tokens of another layer in `rows` rows, without changing that layer."""

    def __init__(self, trunk: DynamicLayer, length: int, rows: int) -> None:
        super().__init__()
        keys, values = _stored(trunk)
        self.keys = keys[:, :, :length].expand(rows, -1, -1, -1)  # [rows, H, length, C]
        self.values = values[:, :, :length].expand(rows, -1, -1, -1)
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True


class _End(DynamicLayer):
    """Continue some rows of another layer for a single pass.

    It stores nothing, so only one layer at a time holds a copy of the prompt for every label.
    """

    def __init__(self, trunk: DynamicLayer, rows: Tensor) -> None:
        super().__init__()
        self.before = _stored(trunk)
        self.rows = rows.to(self.before[0].device)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        keys, values = (each[self.rows] for each in self.before)  # [pairs, H, P, C]
        return torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2)

    def get_seq_length(self) -> int:
        return self.before[0].shape[2]


def _stored(layer: DynamicLayer) -> tuple[Tensor, Tensor]:
    assert layer.keys is not None and layer.values is not None
    return layer.keys, layer.values


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return token ids `[rows, S]` and lengths `[rows]`."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows]), torch.tensor([len(row) for row in rows])


def _passes(prompts: Sequence[LabelPrompt]) -> list[list[tuple[int, int]]]:
    """Return the (prompt, label) pairs of each pass, for labels with more than one token, sorted by length."""
    pairs = [(i, j) for i, prompt in enumerate(prompts) for j, label in enumerate(prompt.labels) if len(label) > 1]
    if not pairs:
        return []
    pairs.sort(key=lambda pair: len(prompts[pair[0]].labels[pair[1]]))
    longest = len(prompts[pairs[-1][0]].labels[pairs[-1][1]])
    keys = max(len(prompt.token_ids) for prompt in prompts) + longest
    size = max(min(MOST_KEYS // keys, MOST_POSITIONS // longest), 1)
    return [pairs[start : start + size] for start in range(0, len(pairs), size)]
