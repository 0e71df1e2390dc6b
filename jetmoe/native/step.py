"""One decoding step on a CPU as one call of a C function: `step = NativeStep(model); logits = step(token, cache)`.

It computes what `jetmoe.decode.step` does for one sequence, without a pass through Python for each layer, and its
result does not depend on the number of threads. Without a C compiler, `NativeStep` raises NotNativeError.
"""

from __future__ import annotations

import ctypes
import os
import threading
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from jetmoe import c_library
from jetmoe.modeling import MoeForCausalLM
from jetmoe.native.description import Description, NotNativeError
from jetmoe.routing import RoutingRecorder

SOURCE = Path(__file__).with_suffix(".c")


class NativeStep:
    """The decoding step of a model and its active adapters. Make a new one after any change of either; it is cheap.

    Raises:
        NotNativeError: the C function can't compute this model.
    """

    def __init__(self, model: MoeForCausalLM) -> None:
        _, problem = c_library.built(SOURCE)
        if problem:
            raise NotNativeError(problem)
        self._model = model.model
        self._described = Description(model)

    def __call__(self, token: int, cache: Cache, recorder: RoutingRecorder | None = None) -> Tensor:
        """Process one more token and return the fp32 logits `[1, vocabulary]` after it.

        Args:
            cache: a static cache for one sequence; the token is added in place, after those that it holds.
            recorder: records the token's routing.

        Raises:
            ValueError: the token is not in the vocabulary, the cache or the recorder is full, or the recorder is for
                another model.
        """
        described, recorder = self._described, recorder or self._model.recorder
        if recorder is not None:
            described.require_fitting(recorder)
        described.use_cache(cache)
        position = int(cache.layers[0].cumulative_length)  # type: ignore[union-attr]
        if not 0 <= token < self._model.embed_tokens.num_embeddings:
            raise ValueError(f"Token {token} is not in the vocabulary of {self._model.embed_tokens.num_embeddings}.")
        if position >= described.model.cache_size:
            raise ValueError(f"The cache is full with {position} tokens; use a longer one.")
        described.use_position(position)
        logits = torch.empty(1, described.model.head.rows, dtype=torch.float32)
        rows = (None, None) if recorder is None else [row.data_ptr() for row in recorder.next_row()]
        threads, lock = _threads(os.getpid(), torch.get_num_threads())
        with lock:
            model = ctypes.byref(described.model)
            _library().jetmoe_step(threads, model, token, position, logits.data_ptr(), *rows)
        return logits


@cache
def _library() -> ctypes.CDLL:
    library, _ = c_library.built(SOURCE)
    assert library is not None
    pointer, number = ctypes.c_void_p, ctypes.c_long
    library.jetmoe_threads_new.argtypes, library.jetmoe_threads_new.restype = [ctypes.c_int], pointer
    library.jetmoe_step.argtypes = [pointer, pointer, number, number, pointer, pointer, pointer]
    library.jetmoe_step.restype = None
    return library


@cache
def _threads(process: int, count: int) -> tuple[int, threading.Lock]:
    """Return threads for this process (a fork does not copy them) and the lock to hold while using them."""
    threads = _library().jetmoe_threads_new(count)
    if not threads:
        raise MemoryError("There is no memory for threads.")
    return threads, threading.Lock()
