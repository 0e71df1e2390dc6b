"""Decode token ids to text while streaming: whole characters only, and nothing from a stop text on."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast


class TokenTexts:
    """Decode tokens one by one. A token that ends inside a character adds "" until another completes it."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, skip_special_tokens: bool = False) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)

    def push(self, token_id: int) -> str:
        return self._stream.step(self._tokenizer, token_id) or ""


def token_texts(tokenizer: PreTrainedTokenizerFast, token_ids: Sequence[int]) -> list[str]:
    texts = TokenTexts(tokenizer)
    return [texts.push(token_id) for token_id in token_ids]


class StopTexts:
    """Hold back text that may be the beginning of a stop text."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.reached = False

    def push(self, text: str) -> str:
        """Return the text to show now. A complete stop text sets `reached`; after it, the result is always ""."""
        if self.reached:
            return ""
        self._held += text
        places = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if places:
            self.reached = True
            return self._release(min(places))
        return self._release(len(self._held) - self._longest_beginning())

    def rest(self) -> str:
        """Return the text that is still held back when the answer ends without a stop text."""
        return "" if self.reached else self._release(len(self._held))

    def _release(self, count: int) -> str:
        shown, self._held = self._held[:count], self._held[count:]
        return shown

    def _longest_beginning(self) -> int:
        """Return the length of the longest suffix of the held text that begins a stop text."""
        lengths = (n for stop in self._stop for n in range(1, len(stop)) if self._held.endswith(stop[:n]))
        return max(lengths, default=0)
