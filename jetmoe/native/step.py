"""One decoding step on a CPU as one call of a C function: `step = NativeStep(model); logits = step(token, cache)`.

It computes what `jetmoe.decode.step` does for one sequence, without a pass through Python for each layer. One call can
also process a token of each of several sequences, which reads the weights once: `step.together([step.prepare(token,
cache), ...])`. The result depends neither on the number of threads nor on the other sequences. Without a C compiler,
`NativeStep` raises NotNativeError.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from jetmoe import c_library
from jetmoe.modeling import MoeForCausalLM
from jetmoe.native import structs
from jetmoe.native.description import Description, NotNativeError
from jetmoe.routing import RoutingRecorder

MAX_TOKENS = structs.MAX_TOKENS
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
        """Process one more token and return the fp32 logits `[1, vocabulary]` after it; arguments as of `prepare`."""
        return self.together([self.prepare(token, cache, recorder)])

    def prepare(self, token: int, cache: Cache, recorder: RoutingRecorder | None = None) -> structs.Sequence:
        """Return what `together` needs for one more token of a sequence. Call it once for each token.

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
        if not 0 <= token < self._model.embed_tokens.num_embeddings:
            raise ValueError(f"Token {token} is not in the vocabulary of {self._model.embed_tokens.num_embeddings}.")
        sequence = described.sequence(token, cache)
        if sequence.position >= sequence.cache_size:
            raise ValueError(f"The cache is full with {sequence.position} tokens; use a longer one.")
        if recorder is not None:
            sequence.router_logits, sequence.router_experts = (row.data_ptr() for row in recorder.next_row())
        return sequence

    def together(self, sequences: Sequence[structs.Sequence]) -> Tensor:
        """Process the tokens of different sequences, 1 to `MAX_TOKENS`; return the fp32 logits `[n, vocabulary]`."""
        if not 0 < len(sequences) <= MAX_TOKENS:
            raise ValueError(f"A step takes 1 to {MAX_TOKENS} sequences, and not {len(sequences)}.")
        described, count = self._described, len(sequences)
        logits = torch.empty(count, described.model.head.rows, dtype=torch.float32)
        array = (structs.Sequence * count)(*sequences)
        threads, lock = _threads(os.getpid(), torch.get_num_threads())
        with lock:
            _library().jetmoe_step(threads, ctypes.byref(described.model), array, count, logits.data_ptr())
        return logits


@cache
def _library() -> ctypes.CDLL:
    library, _ = c_library.built(SOURCE)
    assert library is not None
    pointer, number = ctypes.c_void_p, ctypes.c_long
    library.jetmoe_threads_new.argtypes, library.jetmoe_threads_new.restype = [ctypes.c_int], pointer
    library.jetmoe_step.argtypes = [pointer, pointer, pointer, number, pointer]
    library.jetmoe_step.restype = None
    return library


@cache
def _threads(process: int, count: int) -> tuple[int, threading.Lock]:
    """Return threads for this process (a fork does not copy them) and the lock to hold while using them."""
    threads = _library().jetmoe_threads_new(count)
    if not threads:
        raise MemoryError("There is no memory for threads.")
    return threads, threading.Lock()
