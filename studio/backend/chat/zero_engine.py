"""The engine on a ZeroGPU Space: the model stays on the CPU, and a copy of it answers on the GPU.

    engine = ZeroEngine()                        # otherwise the same as `Engine`

The GPU process is forked from this one, inherits the model and moves it to the GPU. Texts are classified in this
process, on the CPU.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from jetmoe import RoutingTrace
from studio.backend.chat.decoder import Decoder
from studio.backend.chat.decoders import Decoders
from studio.backend.chat.engine import Engine, EngineStatus
from studio.backend.chat.events import TokenEvent
from studio.backend.chat.sampling import Sampling
from studio.backend.data.prompt import Messages, fit_prompt
from studio.backend.models.placement import Placement
from studio.backend.system import zero_gpu
from studio.errors import StudioError

START_S = 15
"""Seconds to fork, move the copy to the GPU and run the prefill."""
SLOWEST_TOK_S = 12
EXIT_S = 1.0
"""Seconds for the last message of a GPU process to arrive before the process ends."""
WHERE = (
    f"Answers run on ZeroGPU and use your daily quota: {START_S} s, and 1 s more for every {SLOWEST_TOK_S} tokens of "
    "“Max new tokens”. Classification runs on the CPU."
)


@dataclass(frozen=True)
class Refused:
    """A StudioError that is sent between processes."""

    sentence: str


class ZeroEngine(Engine):
    def __init__(self) -> None:
        super().__init__(compile_steps=False)  # the GPU process ends within seconds
        self._process = os.getpid()
        self._model_number = 0
        """Counts the models; a GPU process that waits for its next request keeps the model and the number it was
        forked with."""
        global _served
        _served = self

    def install(self, model_id: str, place: Placement, decoder: Decoder, tokenizer: PreTrainedTokenizerFast) -> str:
        """Replace the loaded model, as `Engine` does."""
        self._model_number += 1
        return super().install(model_id, place, decoder, tokenizer)

    def status(self) -> EngineStatus:
        status = super().status()
        if status.state != "ready":
            return status
        # Answers are not written by this process, so its kind of step says nothing about them.
        return replace(status, speed="eager", text=f"{status.text} {WHERE}")

    def answers_at_once(self) -> int:
        """Return 1: each visitor's GPU time is requested on its own."""
        return 1

    def _write(
        self, messages: Messages, sampling: Sampling, cancel: threading.Event, adapter: str | None
    ) -> Iterator[TokenEvent]:
        self._require_answerable(messages, sampling, adapter)
        with closing(self._on_gpu("answer", sampling.max_new_tokens, messages, sampling, adapter)) as events:
            for event in events:
                yield _received(event)
                if cancel.is_set():
                    yield TokenEvent("done", finish="cancelled")
                    return

    def _trace(self, token_ids: list[int], prompt_tokens: int, adapter: str | None) -> RoutingTrace:
        self._ready()
        (trace,) = map(_received, self._on_gpu("trace", 0, token_ids, prompt_tokens, adapter))
        return trace

    def _on_gpu(self, task: str, new_tokens: int, *arguments: Any) -> Generator[Any]:
        return _on_gpu(task, new_tokens, self._model_number, *arguments)

    def _require_answerable(self, messages: Messages, sampling: Sampling, adapter: str | None) -> None:
        """Raise StudioError before a GPU is requested if there can be no answer."""
        decoder, tokenizer = self._ready()
        fit_prompt(tokenizer, messages, decoder.context_size, sampling.max_new_tokens)
        self._missing(adapter)

    def _carry_out(self, task: str, model_number: int, *arguments: Any) -> Iterator[Any]:
        """Run a task in the GPU process, which handles one request at a time and needs no queue.

        Raises:
            StudioError: the process was forked before another model was loaded; it ends, and the next one has it.
        """
        if model_number != self._model_number:
            threading.Timer(EXIT_S, os._exit, [0]).start()
            raise StudioError("Another model was loaded a moment ago. Send the message again.")
        self._arrive()
        if task == "trace":
            yield super()._trace(*arguments)
            return
        messages, sampling, adapter = arguments
        yield from super()._write(messages, sampling, threading.Event(), adapter)

    def _arrive(self) -> None:
        """Move the model to the GPU. No-op if an earlier request in this process has done it."""
        if self._process == os.getpid():
            return
        self._process = os.getpid()
        torch.set_num_threads(1)  # the parent's threads do not exist after a fork
        assert self._decoder is not None
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = self._decoder.model.to(device)  # type: ignore[arg-type]
        self._decoders = Decoders(Decoder(model, self._decoder.context_size))


_served: ZeroEngine | None = None
"""Inherited by the forked process, because the model is too large to send."""


def _seconds(task: str, new_tokens: int, *arguments: Any) -> float:
    return START_S + new_tokens / SLOWEST_TOK_S


def quota_s(new_tokens: int) -> float:
    """Return the seconds of a visitor's quota that an answer uses at most, on the dearest GPU."""
    return zero_gpu.granted(_seconds("answer", new_tokens)) * zero_gpu.DEAREST


@zero_gpu.lent(_seconds)
def _on_gpu(task: str, new_tokens: int, *arguments: Any) -> Iterator[Any]:
    assert _served is not None
    try:
        yield from _served._carry_out(task, *arguments)
    except StudioError as error:
        yield Refused(str(error))


def _received(sent: Any) -> Any:
    if isinstance(sent, Refused):
        raise StudioError(sent.sentence)
    return sent
