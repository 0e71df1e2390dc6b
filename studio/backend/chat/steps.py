"""Decoding steps of one model: eager, or on a CPU as one call of a C function, for several answers together.

steps = NativeSteps(model)
logits = steps.run(token_id, cache, recorder)       # [1, vocabulary]
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from jetmoe import RoutingRecorder
from jetmoe.decode import Step, step
from jetmoe.modeling import MoeForCausalLM
from jetmoe.native.description import NotNativeError
from jetmoe.native.step import MAX_TOKENS, NativeStep
from studio.backend.chat.joint_steps import JointSteps


class Steps:
    """Eager steps, and what the engine calls when the model changes."""

    text = "eager"
    """The status: "eager", "native", "compiling" or "compiled", or "eager: " with the reason."""
    busy = False
    """Whether `pause` and `close` would block."""

    def __init__(self, model: MoeForCausalLM) -> None:
        self.model = model

    def run(self, token_id: int, cache: Cache, recorder: RoutingRecorder | None) -> Tensor:
        """Add a token to a static cache and return the logits `[1, vocabulary]` after it."""
        return self._run(partial(step, self.model), token_id, cache, recorder)

    def _run(self, run: Step, token_id: int, cache: Cache, recorder: RoutingRecorder | None) -> Tensor:
        token = torch.tensor([[token_id]], device=self.model.device)
        position = cache.layers[0].cumulative_length.view(1, 1).clone()  # type: ignore[union-attr]
        return run(token, position, cache, recorder=recorder)

    @property
    def together(self) -> int:
        """Number of answers that can be generated at the same time, in a thread each."""
        return 1

    def alone(self) -> AbstractContextManager[None]:
        """Hold the model for a piece of a prompt, between the steps of other answers."""
        return nullcontext()

    def enable(self) -> None:
        """Prepare faster steps, if that takes time."""

    def request(self, cache_length: int) -> None:
        """Prepare for a cache of this length."""

    def pause(self) -> None:
        """Discard what depends on the weights; call it before they change, for example for another adapter."""

    def resume(self) -> None:
        """Prepare again; call it when the same adapter answers again."""

    def close(self) -> None:
        """Free what was prepared; call it before another model is loaded."""


class NativeSteps(Steps):
    """Steps on a CPU. They are eager if there is no C compiler, or if the C function can't compute an adapter."""

    def __init__(self, model: MoeForCausalLM) -> None:
        super().__init__(model)
        self._lock = threading.Lock()
        self._joint = JointSteps(self._together, MAX_TOKENS)
        self._describe()

    def run(self, token_id: int, cache: Cache, recorder: RoutingRecorder | None) -> Tensor:
        with self._lock:
            if self._changed:
                self._describe()
            native = self._native
        if native is not None:
            return self._joint.step(id(cache), native.prepare(token_id, cache, recorder))
        with self.alone():
            return super().run(token_id, cache, recorder)

    @property
    def together(self) -> int:
        return 1 if self._native is None else MAX_TOKENS

    def alone(self) -> AbstractContextManager[None]:
        return self._joint.alone()

    def pause(self) -> None:
        self._changed = True

    def _describe(self) -> None:
        self._changed = False
        self._native: NativeStep | None = None
        try:
            self._native, self.text = NativeStep(self.model), "native"
        except NotNativeError as reason:
            self.text = f"eager: {reason}"

    def _together(self, sequences: Sequence[Any]) -> Tensor:
        assert self._native is not None
        return self._native.together(sequences)


def keep_all() -> None:
    """Exclude all live objects, such as the model and its compiled code, from garbage collection.

    Scanning them would stop every thread for some tenths of a second each time.
    """
    gc.collect()
    gc.freeze()
