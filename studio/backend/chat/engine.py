"""The engine owns the model, the tokenizer and the queue in front of them; `generate` yields `TokenEvent`s.

engine = Engine()
engine.load("starter")
engine.load_adapter("3f2a", "pirate")       # a run's id; the folder of a PEFT adapter works too
for event in engine.generate([{"role": "user", "content": "Hi"}], Sampling(), adapter="pirate"):
    print(event.text, end="")

An adapter of `adapters.choices` needs no `load_adapter`: pass its id to `generate` and `replay`.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from jetmoe import RoutingTrace
from jetmoe.adapters.files import CONFIG, WEIGHTS
from jetmoe.adapters.switching import Adapters
from jetmoe.lora import AdapterError
from studio.backend.adapters.find import Found, find, find_id, is_id, require_model
from studio.backend.chat.answer import Answer
from studio.backend.chat.decoder import Decoder
from studio.backend.chat.decoders import Decoders
from studio.backend.chat.events import TokenEvent
from studio.backend.chat.loading import Loader, silent
from studio.backend.chat.queue import Queue
from studio.backend.chat.sampling import Sampling
from studio.backend.chat.status import EngineStatus, memory_text, ready_status
from studio.backend.chat.steps import keep_all
from studio.backend.chat.text_stream import token_texts
from studio.backend.data.prompt import Messages, fit_prompt
from studio.backend.models import placement
from studio.backend.models.placement import Placement, Precision
from studio.backend.system.progress import Progress
from studio.errors import StudioError

__all__ = ["Engine", "EngineStatus", "Sampling"]
# The studio reports progress itself, on the page and in the console.
transformers_logging.disable_progress_bar()
# Adapters loaded by id that are kept in memory.
MAX_ENSURED = 4


class Turn(NamedTuple):
    """Exclusive access to the model for the head of the queue."""

    decoder: Decoder
    tokenizer: PreTrainedTokenizerFast
    adapter_load: int
    """Changes whenever other weights are loaded under the adapter's name."""


class Engine:
    """Serve one model to a queue of requests; on a GPU, `compile_steps` compiles its steps in the background.

    Where steps are native, answers with the same adapter are generated together, as many as memory allows.
    """

    def __init__(self, compile_steps: bool = True) -> None:
        self.compile_steps = compile_steps
        self._queue = Queue(self.answers_at_once)
        self._status = EngineStatus()
        self._decoders: Decoders | None = None
        self._beginning = threading.Lock()
        """Held while an answer picks its decoder, and switches the adapter if it is the only one."""
        self._adapters: Adapters | None = None
        # Adapters loaded by id, least recently used first, with the state of their files at loading.
        self._ensured: dict[str, tuple[int, ...]] = {}
        self._adapter_loads: dict[str, int] = {}
        self._tokenizer: PreTrainedTokenizerFast | None = None
        self.loader = Loader(self)

    def status(self) -> EngineStatus:
        """Return the state of the model that answers; without one, that of the model that is being loaded."""
        decoder, change = self._decoder, self.loader.change
        if decoder is not None:
            memory = memory_text(decoder, self._cache_bytes())
            return replace(self._status, speed=decoder.steps.text, memory=memory, change=change)
        if change is not None:
            return EngineStatus(change.state, change.model_id, change.text, change.progress, change=change)
        return EngineStatus()

    def start_loading(
        self,
        model_id: str,
        progress: Progress = silent,
        precision: Precision = "auto",
        waits: Iterator[float] | None = None,
    ) -> None:
        """Load a model in the background; `status` and `progress` report the progress.

        The present model answers until the new one is ready. If both don't fit into the memory, it answers until the
        download is complete.

        Args:
            precision: "nf4", "bf16" or "fp32"; "auto" is 4-bit on a GPU and the catalog's choice on a CPU.
            waits: seconds between attempts, as of `loading.growing_waits`; None tries once.

        Raises:
            StudioError: the model or the precision is unknown, or another model is being loaded.
        """
        self.loader.start(model_id, progress, precision, waits)

    def load(self, model_id: str, progress: Progress = silent, precision: Precision = "auto") -> None:
        """Load a model and wait for it; arguments as of `start_loading`.

        Raises:
            StudioError: the model is unknown, unavailable, too large or damaged.
        """
        self.loader.load(model_id, progress, precision)

    def load_adapter(self, run_or_folder: str | Path, name: str) -> None:
        """Load an adapter under a name for `generate`; an adapter of the same name is replaced.

        Args:
            run_or_folder: a run's id or its first characters, or the folder of a PEFT adapter.

        Raises:
            StudioError: no model is ready, there is no such adapter, or it belongs to another model.
        """
        found = find(run_or_folder)
        with self._queue.join() as ticket:  # weights never change during an answer
            for _ in ticket.wait():
                pass
            self._ready()
            self._load_adapter(found, name)
            self._ensured.pop(name, None)

    def ensure_adapter(self, adapter_id: str) -> None:
        """Load the adapter of a run or an upload under its id, unless it is loaded and its files are unchanged.

        The least recently used adapters are evicted.

        Raises:
            StudioError: no model is ready, there is no such adapter, or it belongs to another model.
        """
        with self._queue.join() as ticket:
            for _ in ticket.wait():
                pass
            self._ready()
            self._ensure(adapter_id, self._missing(adapter_id))

    def remove_adapter(self, name: str) -> None:
        """Free the memory of an adapter; a no-op if it is not loaded."""
        with self._queue.join() as ticket:
            for _ in ticket.wait():
                pass
            self._drop(name)

    def adapters(self) -> list[str]:
        """Return the names of the loaded adapters."""
        return [] if self._adapters is None else self._adapters.names

    def generate(
        self,
        messages: Messages,
        sampling: Sampling,
        cancel: threading.Event | None = None,
        adapter: str | None = None,
    ) -> Iterator[TokenEvent]:
        """Generate an answer as `TokenEvent`s. Closing the iterator or setting `cancel` stops it.

        Args:
            messages: they end with the user's message, or with the beginning of an answer, which is continued.
            adapter: the name of a loaded adapter, or an id as of `ensure_adapter`; None is the base model.

        Raises:
            StudioError: no model is ready, the adapter is unavailable, or the messages can't be answered.
        """
        cancel = cancel or threading.Event()
        with self._queue.join(("answers", adapter)) as ticket:
            for ahead in ticket.wait(cancel.is_set):
                yield TokenEvent("queued", place=ahead)
            if cancel.is_set():
                yield TokenEvent("done", finish="cancelled")
                return
            yield from self._write(messages, sampling, cancel, adapter)

    def replay(self, token_ids: Sequence[int], prompt_tokens: int, adapter: str | None = None) -> RoutingTrace:
        """Recompute the routing of a text from its tokens in one pass, with the base model or an adapter.

        Raises:
            StudioError: no model is ready, the adapter is unavailable, or the tokens are not in the vocabulary.
        """
        with self._queue.join() as ticket:
            for _ in ticket.wait():
                pass
            return self._trace(list(token_ids), prompt_tokens, adapter)

    def prompt_text(self, messages: Messages, sampling: Sampling) -> str:
        """Return the prompt for an answer as the model gets it, with control tokens. It does not wait in the queue.

        Raises:
            StudioError: no model is ready, or the messages can't be answered.
        """
        decoder, tokenizer = self._ready()
        prompt = fit_prompt(tokenizer, messages, decoder.context_size, sampling.max_new_tokens)
        return "".join(token_texts(tokenizer, prompt.token_ids))

    @contextmanager
    def turn(self, adapter: str | None = None, cancelled: Callable[[], bool] = lambda: False) -> Iterator[Turn | None]:
        """Hold the model for work other than an answer, such as a batch to classify, until the end of the block.

        Yields None if cancelled while in the queue. Adapters as of `generate`.

        Raises:
            StudioError: no model is ready, or the adapter is unavailable.
        """
        with self._queue.join() as ticket:
            for _ in ticket.wait(cancelled):
                pass
            if cancelled():
                yield None
                return
            decoder, tokenizer = self._ready()
            for _ in self._switch(adapter):
                pass
            yield Turn(decoder, tokenizer, 0 if adapter is None else self._adapter_loads[adapter])

    def _ready(self) -> tuple[Decoder, PreTrainedTokenizerFast]:
        if self._decoder is None or self._tokenizer is None:
            raise StudioError(f"The model isn't ready yet. {self.status().text}")
        return self._decoder, self._tokenizer

    def _write(
        self, messages: Messages, sampling: Sampling, cancel: threading.Event, adapter: str | None
    ) -> Iterator[TokenEvent]:
        """Generate an answer. The caller must hold the queue, here and in all methods below."""
        first, tokenizer = self._ready()
        assert self._decoders is not None
        prompt = fit_prompt(tokenizer, messages, first.context_size, sampling.max_new_tokens)
        with ExitStack() as lent:
            with self._beginning:
                if not self._decoders.in_use:  # other answers use the same adapter
                    yield from self._switch(adapter)
                self._require_answers(adapter)
                lent.enter_context(
                    placement.shortage(
                        "while answering: lower 'Max new tokens', start a new chat or load the model in nf4"
                    )
                )
                decoder = lent.enter_context(self._decoders.lend(prompt.token_ids))
            yield from Answer(decoder, tokenizer, prompt, sampling, cancel.is_set).events()

    def _trace(self, token_ids: list[int], prompt_tokens: int, adapter: str | None) -> RoutingTrace:
        decoder, tokenizer = self._ready()
        vocab_size = decoder.model.config.vocab_size
        if not token_ids or any(not isinstance(i, int) or not 0 <= i < vocab_size for i in token_ids):
            raise StudioError("These tokens are not in this model's vocabulary. Load the model that wrote the answer.")
        for _ in self._switch(adapter):
            pass
        decoder.prefill(token_ids, room=0)
        return decoder.trace(token_texts(tokenizer, token_ids), prompt_tokens)

    def _switch(self, adapter: str | None) -> Iterator[TokenEvent]:
        """Activate the adapter. Yield a notice if that waits for a running compilation."""
        assert self._decoder is not None and self._adapters is not None
        missing = self._missing(adapter)
        if missing is None and adapter == self._adapters.used:
            if self.compile_steps:
                self._decoder.steps.resume()
        elif self._decoder.steps.busy:
            yield TokenEvent("notice", "The adapter answers once the running compilation has finished.")
        self._ensure(adapter, missing)
        if adapter != self._adapters.used:
            self._change_model(partial(self._adapters.use, adapter))

    def _require_answers(self, adapter: str | None) -> None:
        """Raise StudioError if the adapter was trained to classify."""
        assert self._adapters is not None
        if adapter in self._adapters.classifiers:
            raise StudioError("This adapter is a classifier and can't chat. Pick another, or classify texts with it.")

    def _missing(self, adapter: str | None) -> Found | None:
        """Return the adapter to load, or None if it is already loaded.

        Raises:
            StudioError: there is no such adapter, or it belongs to another model.
        """
        assert self._adapters is not None and self._status.model_id is not None
        loaded = self._adapters.names
        if adapter is None or (adapter in loaded and adapter not in self._ensured):
            return None
        if not is_id(adapter):
            raise StudioError(
                f"The adapter {str(adapter)[:80]!r} is not loaded; "
                f"loaded: {', '.join(loaded) or 'none'}. Load it first."
            )
        found = find_id(adapter)
        require_model(found, self._status.model_id)
        return None if self._ensured.get(adapter) == _state(found.folder) else found

    def _ensure(self, adapter: str | None, missing: Found | None) -> None:
        """Load a missing adapter and evict the least recently used ones."""
        if adapter is not None and missing is not None:
            self._drop(adapter)  # it was loaded from older files
            for oldest in list(self._ensured)[: 1 - MAX_ENSURED]:
                self._drop(oldest)
            state = _state(missing.folder)  # taken before reading, so that later changes are loaded again
            self._load_adapter(missing, adapter)
            self._ensured[adapter] = state
        elif adapter in self._ensured:
            self._ensured[adapter] = self._ensured.pop(adapter)

    def _load_adapter(self, found: Found, name: str) -> None:
        assert self._adapters is not None and self._status.model_id is not None
        require_model(found, self._status.model_id)
        try:
            with placement.shortage("while loading the adapter: close other programs"):
                self._change_model(partial(self._adapters.load, found.folder, name))
            self._adapter_loads[name] = self._adapter_loads.get(name, 0) + 1
        except AdapterError as error:
            raise StudioError(str(error)) from error

    def _drop(self, name: str) -> None:
        if self._adapters is not None and name in self._adapters.names:
            self._change_model(partial(self._adapters.remove, name))
        self._ensured.pop(name, None)

    def _change_model(self, change: Callable[[], None]) -> None:
        assert self._decoders is not None
        self._decoders.change_model(change)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the model without using it, as its loader does."""
        with self._queue.join() as ticket:
            for _ in ticket.wait():
                pass
            yield

    def loaded_gib(self) -> float:
        """Return the memory of the loaded model and its cache, in GiB; 0 if there is none."""
        decoder = self._decoder
        return 0.0 if decoder is None else (decoder.weight_bytes + self._cache_bytes()) / placement.GIB

    def answers_at_once(self) -> int:
        """Return how many answers can be generated at the same time now."""
        return 1 if self._decoders is None else self._decoders.limit()

    @property
    def _decoder(self) -> Decoder | None:
        """For work that holds the model alone."""
        return None if self._decoders is None else self._decoders.first

    def _cache_bytes(self) -> int:
        return 0 if self._decoders is None else self._decoders.cache_bytes

    def install(self, model_id: str, place: Placement, decoder: Decoder, tokenizer: PreTrainedTokenizerFast) -> str:
        """Replace the loaded model and return a sentence about the new one. The caller must hold the queue."""
        if self._decoder is not None:
            self._decoder.steps.close()
            gc.unfreeze()  # so that `keep_all` frees the replaced model
        self._status = ready_status(model_id, place, decoder, tokenizer)
        self._decoders, self._tokenizer, self._adapters = Decoders(decoder), tokenizer, Adapters(decoder.model)
        self._ensured = {}
        keep_all()
        torch.cuda.empty_cache()
        if self.compile_steps:
            decoder.steps.enable()
        return self._status.text

    def unload(self) -> None:
        """Free the memory of the loaded model. The caller must hold the queue."""
        if self._decoder is not None:
            self._decoder.steps.close()
            self._decoders = self._tokenizer = self._adapters = None
            self._ensured = {}
            gc.unfreeze()
            gc.collect()
            torch.cuda.empty_cache()


def _state(folder: Path) -> tuple[int, ...]:
    """Return inode, mtime and size of the adapter's files, to detect changes."""
    files = [(folder / name).stat() for name in (CONFIG, WEIGHTS) if (folder / name).is_file()]
    return tuple(number for file in files for number in (file.st_ino, file.st_mtime_ns, file.st_size))
