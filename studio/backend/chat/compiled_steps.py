"""Decoding steps on a GPU, compiled to one graph for each cache length."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from jetmoe import RoutingRecorder
from jetmoe.decode import Step, compiled_step
from jetmoe.modeling import MoeForCausalLM
from studio.backend.chat.cache import cache_size, new_cache
from studio.backend.chat.steps import Steps, keep_all
from studio.backend.system.home import home, local


class CompiledSteps(Steps):
    """Steps on a GPU: eager until the step for the length of the cache is compiled in the background."""

    def __init__(self, model: MoeForCausalLM, context_size: int, record: bool) -> None:
        super().__init__(model)
        self._record = record
        self._context_size = context_size
        self._step: Step | None = None
        self.ready: set[int] = set()
        self._requested: set[int] = set()
        self._lock = threading.Lock()
        self.enabled = False
        self.paused = True

    def run(self, token_id: int, cache: Cache, recorder: RoutingRecorder | None) -> Tensor:
        if self._step is not None and cache.layers[0].max_cache_len in self.ready:  # type: ignore[union-attr]
            return self._run(self._step, token_id, cache, recorder)
        return super().run(token_id, cache, recorder)

    def enable(self) -> None:
        """Start compiling. The results are cached on the local disk."""
        # On mounted storage, thousands of small files would be slow, and compiled code would come from another machine.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(local(home()) / "compiled"))
        # Compile one kernel at a time: a pool would take cores and memory from running answers.
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
        with self._lock:
            self.paused = False
            if self.enabled:
                return
            self._step = compiled_step(self.model)
            self.enabled = True
        self.request(cache_size(1, self._context_size))

    def close(self) -> None:
        """Discard the compiled steps. Waits for a running compilation."""
        self.enabled = False
        with _one_compilation:
            torch.compiler.reset()

    @property
    def busy(self) -> bool:  # type: ignore[override]
        return self.enabled and _one_compilation.locked()

    def pause(self) -> None:
        """Fall back to eager steps before the model changes, because compiled ones don't check for changes."""
        if not (self.enabled or self.ready):
            return
        was_enabled = self.enabled
        self.close()
        with self._lock:
            self.ready, self._requested = set(), set()
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
            self.ready.add(cache_length)
            self.text = "compiled"
            keep_all()

    @torch.no_grad()
    def _rehearse(self, cache_length: int) -> None:
        """Run steps with a separate cache and recorder, so that running answers are not affected."""
        assert self._step is not None
        cache = new_cache(self.model, cache_length)
        recorder = RoutingRecorder(self.model, self._context_size) if self._record else None
        token = torch.zeros(1, 1, dtype=torch.int64, device=self.model.device)
        for layer in cache.layers:
            layer.used = 1  # type: ignore[union-attr]
        self.model(input_ids=token, past_key_values=cache, use_cache=True, recorder=recorder)
        for position in (1, 2):
            self._step(token, torch.full_like(token, position), cache, recorder=recorder)


_one_compilation = threading.Lock()


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
