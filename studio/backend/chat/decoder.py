"""Prefill and decode one sequence at a time, with a static cache, recorded routing and compiled steps.

decoder = Decoder(model, context_size=8192)
logits = decoder.prefill(token_ids, room=512)      # [1, vocabulary]
logits = decoder.step(token_id)
trace = decoder.trace(texts, prompt_tokens, start=0)
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor
from transformers.cache_utils import Cache, StaticLayer

from jetmoe import RoutingRecorder, RoutingTrace
from jetmoe.decode import Step, compiled_step, step
from jetmoe.loading.load import quantized_share
from jetmoe.modeling import MoeForCausalLM
from jetmoe.nf4 import cpu as nf4_cpu
from studio.backend.system.compiler import cpp_compiler
from studio.backend.system.home import home
from studio.errors import StudioError

SMALLEST_CACHE = 1024
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
        self.compiled = CompiledSteps(model, context_size, record)

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
        # Fall back to the eager step until the step for this cache length is compiled.
        run = self.compiled.get(self.cache_length) or self._plain_step
        token = torch.tensor([[token_id]], device=self.model.device)
        position = torch.tensor([[len(self.token_ids)]], device=self.model.device)
        logits = run(token, position, self.cache, recorder=self.recorder)
        self.token_ids.append(token_id)
        return logits

    def change_model(self, change: Callable[[], None]) -> None:
        """Change the weights, such as the active adapter, and invalidate the cache and the compiled steps."""
        self.compiled.pause()
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

    def _plain_step(self, *args, **kwargs) -> Tensor:
        return step(self.model, *args, **kwargs)

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
            self.cache, self.cache_length = _new_cache(self.model, size), size
            self.token_ids = []
        self.compiled.request(self.cache_length)

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


class _Keys(StaticLayer):
    """Cached keys and values of one layer in a buffer of fixed length.

    Eager forwards get only the used part, so they need no mask. Compiled ones get the whole buffer and a mask, so their
    shapes never change.
    """

    used = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        if torch.compiler.is_dynamo_compiling():
            return keys, values
        return keys[:, :, : self.used], values[:, :, : self.used]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (self.max_cache_len if torch.compiler.is_dynamo_compiling() else self.used), 0


def _new_cache(model: MoeForCausalLM, length: int) -> Cache:
    layers: list = [_Keys(max_cache_len=length) for _ in range(model.config.num_hidden_layers)]
    return Cache(layers=layers)


class CompiledSteps:
    """Compile decode steps in the background, one for each cache length.

    `text` is the status: "eager", "compiling", "compiled", or "eager: " with the reason.
    """

    def __init__(self, model: MoeForCausalLM, context_size: int, record: bool) -> None:
        self.text = "eager"
        self._record = record
        self._model = model
        self._context_size = context_size
        self._step: Step | None = None
        self._ready: set[int] = set()
        self._requested: set[int] = set()
        self._lock = threading.Lock()
        self.enabled = False
        self.paused = True

    def enable(self) -> None:
        """Start compiling if this machine supports it. The results are cached on disk in the studio's home."""
        if self._model.device.type == "cpu" and (obstacle := self._obstacle()):
            self.text = f"eager: {obstacle}"
            return
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(home() / "compiled"))
        # Compile one kernel at a time: a pool would take cores and memory from running answers.
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
        with self._lock:
            self.paused = False
            if self.enabled:
                return
            self._step = compiled_step(self._model)
            self.enabled = True
        self.request(cache_size(1, self._context_size))

    def _obstacle(self) -> str:
        """Return why steps can't be compiled on this CPU, or "" if they can."""
        if quantized_share(self._model) and not nf4_cpu.supported():
            return "the code that unpacks 4-bit weights on this processor can't be compiled"
        return "" if cpp_compiler() else "no C++ compiler was found; install g++ for about three times the speed"

    def close(self) -> None:
        """Discard the compiled steps before another model is loaded. Waits for a running compilation."""
        self.enabled = False
        with _one_compilation:
            torch.compiler.reset()

    @property
    def busy(self) -> bool:
        """Whether `pause` and `close` would block."""
        return self.enabled and _one_compilation.locked()

    def pause(self) -> None:
        """Fall back to eager steps before the model changes, because compiled ones don't check for changes."""
        if not (self.enabled or self._ready):
            return
        was_enabled = self.enabled
        self.close()
        with self._lock:
            self._ready, self._requested = set(), set()
        if was_enabled:  # otherwise compiling has failed, and isn't tried again
            self.paused = True
            self.text = "eager: the adapter has changed; compiling starts with its second answer in a row"

    def resume(self) -> None:
        """Compile for the current model, unless that is running or has failed.

        Call it when an adapter answers twice in a row. If every switch started a compilation, requests would wait for
        compiled steps that are invalidated before their first use.
        """
        if self.paused:
            self.enable()

    def get(self, cache_length: int) -> Step | None:
        return self._step if cache_length in self._ready else None

    def request(self, cache_length: int) -> None:
        with self._lock:
            if not self.enabled or cache_length in self._requested:
                return
            self._requested.add(cache_length)
        threading.Thread(target=self._compile, args=(cache_length,), daemon=True, name="compile").start()

    def _compile(self, cache_length: int) -> None:
        with _one_compilation, _short_turns():
            if not self.enabled:
                return
            self.text = "compiling"
            try:
                self._rehearse(cache_length)
            except Exception as error:  # eager steps still work, and the page shows the reason
                self.text = f"eager: compiling failed with {type(error).__name__}; the server's log has the details"
                self.enabled = False
                raise
            self._ready.add(cache_length)
            self.text = "compiled"
            keep_all()

    @torch.no_grad()
    def _rehearse(self, cache_length: int) -> None:
        """Run steps with a separate cache and recorder, so that running answers are not affected."""
        assert self._step is not None
        cache = _new_cache(self._model, cache_length)
        recorder = RoutingRecorder(self._model, self._context_size) if self._record else None
        token = torch.zeros(1, 1, dtype=torch.int64, device=self._model.device)
        for layer in cache.layers:
            layer.used = 1  # type: ignore[union-attr]
        self._model(input_ids=token, past_key_values=cache, use_cache=True, recorder=recorder)
        for position in (1, 2):
            self._step(token, torch.full_like(token, position), cache, recorder=recorder)


_one_compilation = threading.Lock()


def keep_all() -> None:
    """Exclude all live objects, such as the model and its compiled code, from garbage collection.

    Scanning them would stop every thread for some tenths of a second each time.
    """
    gc.collect()
    gc.freeze()


@contextmanager
def _short_turns() -> Iterator[None]:
    """Shorten the interpreter's switch interval while the compiler runs.

    The compiler is Python code that never blocks. At the default 5 ms, a running answer would wait that long for the
    interpreter after each of its thousand operations per token.
    """
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


def cache_size(length: int, context_size: int) -> int:
    """Return the smallest cache length for `length` tokens. Lengths double from 1,024, so that few are compiled."""
    size = SMALLEST_CACHE
    while size < length:
        size *= 2
    return min(size, context_size)


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    for i, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return i
    return min(len(first), len(second))
