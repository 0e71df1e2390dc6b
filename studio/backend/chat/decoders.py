"""The decoders of one model: one for each answer that is generated at the same time. They share weights and steps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from studio.backend.chat.decoder import Decoder, common_length
from studio.backend.system.plan import available_memory

SHARE = 0.5
"""Share of the free memory for the caches of further answers."""


class Decoders:
    def __init__(self, first: Decoder) -> None:
        self.first = first
        self._idle: list[Decoder] = [first]
        self._used: list[Decoder] = []
        self._lock = threading.Lock()

    @property
    def in_use(self) -> bool:
        return bool(self._used)

    @property
    def cache_bytes(self) -> int:
        """Size of all cached keys and values."""
        return sum(decoder.cache_bytes for decoder in (*self._idle, *self._used))

    def limit(self) -> int:
        """Return how many answers can be generated at the same time: as many as a step takes, if memory allows."""
        most = self.first.steps.together
        if most == 1:
            return 1
        further = int(available_memory() * SHARE / self.first.longest_bytes)
        return min(most, len(self._idle) + len(self._used) + further)

    @contextmanager
    def lend(self, token_ids: Sequence[int]) -> Iterator[Decoder]:
        """Lend the idle decoder that has read most of these tokens, or a new one if all are in use."""
        with self._lock:
            decoder = max(self._idle, key=lambda one: common_length(one.token_ids, token_ids), default=None)
            if decoder is None:
                decoder = self.first.beside()
            else:
                self._idle.remove(decoder)
            self._used.append(decoder)
        try:
            yield decoder
        finally:
            with self._lock:
                self._used.remove(decoder)
                self._idle.append(decoder)  # the least recently used comes first

    def change_model(self, change: Callable[[], None]) -> None:
        """Change the weights, as `Decoder.change_model` does. No decoder may be in use."""
        assert not self._used
        self._idle = [self.first]
        self.first.change_model(change)
