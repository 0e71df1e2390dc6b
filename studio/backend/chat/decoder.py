"""Prefill and decode one sequence at a time, with a static cache and recorded routing.

decoder = Decoder(model, context_size=8192)
logits = decoder.prefill(token_ids, room=512)      # [1, vocabulary]
logits = decoder.step(token_id)
trace = decoder.trace(texts, prompt_tokens, start=0)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from jetmoe import RoutingRecorder, RoutingTrace
from jetmoe.loading.load import quantized_share
from jetmoe.modeling import MoeForCausalLM
from studio.backend.chat.cache import cache_size, new_cache
from studio.backend.chat.compiled_steps import CompiledSteps
from studio.backend.chat.steps import NativeSteps, Steps
from studio.backend.models.placement import GIB
from studio.errors import StudioError

# Prefill runs in chunks, so that a cancellation takes effect between two of them.
PREFILL_TOKENS = 512
# A GPU reads them in a fraction of a second, and needs many tokens for each expert to be busy.
GPU_PREFILL_TOKENS = 2048


class Decoder:
    """Run prefill and decode steps of one model.

    Args:
        record: record the routing of every token, for `trace`.
    """

    def __init__(self, model: MoeForCausalLM, context_size: int, record: bool = True) -> None:
        self.model = model
        self.context_size = context_size
        self.recorder = RoutingRecorder(model, context_size) if record else None
        self.token_ids: list[int] = []
        """Tokens in the cache and the recorder. A prompt that shares a prefix with them reuses it."""
        self.cache: Cache | None = None
        self.cache_length = 0
        on_cpu = model.device.type == "cpu"
        self.steps: Steps = NativeSteps(model) if on_cpu else CompiledSteps(model, context_size, record)

    @torch.no_grad()
    def prefill(
        self,
        token_ids: Sequence[int],
        room: int,
        cancelled: Callable[[], bool] = lambda: False,
        reuse: bool = True,
    ) -> Tensor:
        """Return the logits `[1, vocabulary]` after the prompt, with cache space for `room` more tokens.

        Args:
            reuse: reuse the cached prefix of an earlier text. It saves time, but the chunks differ from those of a
                full prefill, and so do the last bits of the logits.

        Raises:
            StudioError: the prompt is longer than the context.
        """
        if len(token_ids) > self.context_size:
            raise StudioError(
                f"{len(token_ids):,} tokens are more than the model's context of {self.context_size:,}. Shorten the "
                "text."
            )
        self._fit_cache(min(len(token_ids) + room, self.context_size))
        self._keep(min(_common_length(self.token_ids, token_ids), len(token_ids) - 1) if reuse else 0)
        piece = GPU_PREFILL_TOKENS if self.model.device.type == "cuda" else PREFILL_TOKENS
        logits = None
        while len(self.token_ids) < len(token_ids) and not (logits is not None and cancelled()):
            logits = self._read(token_ids[len(self.token_ids) : len(self.token_ids) + piece])
        assert logits is not None
        return logits

    @torch.no_grad()
    def step(self, token_id: int) -> Tensor:
        """Return the logits `[1, vocabulary]` after one more token."""
        assert self.cache is not None
        self._announce(1)
        logits = self.steps.run(token_id, self.cache, self.recorder)
        self.token_ids.append(token_id)
        return logits

    def change_model(self, change: Callable[[], None]) -> None:
        """Change the weights, such as the active adapter, and invalidate the cache and the steps."""
        self.steps.pause()
        self.token_ids = []
        change()

    def trace(self, texts: Sequence[str], prompt_tokens: int, start: int = 0) -> RoutingTrace:
        """Return the routing of the tokens from `start` on. The sequence begins with `prompt_tokens` prompt tokens."""
        assert self.recorder is not None
        is_prompt = [i < prompt_tokens for i in range(start, start + len(texts))]
        return self.recorder.trace(self.token_ids[start : start + len(texts)], texts, is_prompt, start=start)

    @cached_property
    def weight_bytes(self) -> int:
        return self.model.get_memory_footprint()

    @cached_property
    def quantized_share(self) -> float:
        """Share of the parameters in 4 bits, 0 to 1."""
        return quantized_share(self.model)

    @property
    def cache_bytes(self) -> int:
        """Size of the cached keys and values."""
        if self.cache is None:
            return 0
        stored = [part for layer in self.cache.layers for part in (layer.keys, layer.values)]  # type: ignore[union-attr]
        return sum(part.nbytes for part in stored if part is not None)

    @property
    def memory_text(self) -> str:
        """The memory use, as in "weights 4.6 GiB, cache 0.2 GiB, 97 % of parameters in 4-bit"."""
        parts = [f"weights {self.weight_bytes / GIB:.2f} GiB"]
        if self.cache_bytes:
            parts.append(f"cache {self.cache_bytes / GIB:.2f} GiB")
        share = self.quantized_share
        return ", ".join([*parts, f"{share:.0%} of parameters in 4-bit".replace("%", " %")] if share else parts)

    def _read(self, token_ids: Sequence[int]) -> Tensor:
        ids = torch.tensor([list(token_ids)], device=self.model.device)
        self._announce(len(token_ids))
        positions = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0) + len(self.token_ids)
        output = self.model(
            input_ids=ids,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            recorder=self.recorder,
        )
        self.token_ids += token_ids
        return output.logits[:, -1].float()

    def _fit_cache(self, length: int) -> None:
        size = cache_size(length, self.context_size)
        if self.cache_length < size:
            self.cache, self.cache_length = new_cache(self.model, size), size
            self.token_ids = []
        self.steps.request(self.cache_length)

    def _announce(self, count: int) -> None:
        """Set the number of tokens that the cache will hold after the next forward pass."""
        assert self.cache is not None
        for layer in self.cache.layers:
            layer.used = len(self.token_ids) + count  # type: ignore[union-attr]

    def _keep(self, length: int) -> None:
        """Truncate the cache and the recorder to the first `length` tokens."""
        self.token_ids = self.token_ids[:length]
        if self.recorder is not None:
            self.recorder.length.fill_(length)
        assert self.cache is not None
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(length)  # type: ignore[union-attr]


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    for i, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return i
    return min(len(first), len(second))
