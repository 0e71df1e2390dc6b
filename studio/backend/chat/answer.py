"""Generate one answer, token by token."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from transformers import PreTrainedTokenizerFast

from jetmoe.modeling import MoeForCausalLM
from studio.backend.chat.alternatives import most_likely
from studio.backend.chat.decoder import Decoder
from studio.backend.chat.events import Timing, TokenEvent
from studio.backend.chat.sampling import Sampler, Sampling
from studio.backend.chat.text_stream import StopTexts, TokenTexts, token_texts
from studio.backend.data.prompt import Prompt


class Answer:
    """One answer; `events` generates it."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: PreTrainedTokenizerFast,
        prompt: Prompt,
        sampling: Sampling,
        cancelled: Callable[[], bool],
    ) -> None:
        self.decoder = decoder
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.cancelled = cancelled
        self.seeded = sampling.seed is not None
        self.sampler = Sampler(sampling)
        self.limit = min(sampling.max_new_tokens, decoder.context_size - len(prompt.token_ids))
        self.stop_texts = StopTexts(sampling.stop)
        self.ends = _end_tokens(decoder.model)
        self.started = time.perf_counter()
        self.first_at = 0.0
        self.count = 0

    def events(self) -> Iterator[TokenEvent]:
        for notice in self.prompt.notices:
            yield TokenEvent("notice", notice)
        # With a seed the logits must be reproducible to the last bit, so the cache of an earlier prompt is not reused.
        logits = self.decoder.prefill(self.prompt.token_ids, self.limit, self.cancelled, reuse=not self.seeded)
        prompt_tokens = self._prompt_tokens
        texts = token_texts(self.tokenizer, self.decoder.token_ids)
        yield TokenEvent("prompt", trace=self.decoder.trace(texts, prompt_tokens), timing=self._timing())
        finish: Literal["stop", "length", "cancelled"] = "cancelled"
        texts_of_answer = TokenTexts(self.tokenizer)
        for token_id in self.prompt.token_ids[prompt_tokens:]:
            texts_of_answer.push(token_id)
        while not self.cancelled():
            if self.count >= self.limit:
                finish = "length"
                break
            seen = torch.tensor([self.decoder.token_ids])
            logits = logits.cpu()
            token_id, logprob = self.sampler.choose(logits, seen)
            if token_id in self.ends:
                finish = "stop"
                break
            others = most_likely(logits, self.tokenizer, token_id)
            logits = self.decoder.step(token_id)
            self._count_token()
            text = texts_of_answer.push(token_id)
            trace = self.decoder.trace([text], prompt_tokens, start=len(self.decoder.token_ids) - 1)
            shown = self.stop_texts.push(text)
            yield TokenEvent("token", shown, token_id, logprob, trace, self._timing(), alternatives=others)
            if self.stop_texts.reached:
                finish = "stop"
                break
        if finish == "length":
            yield TokenEvent(
                "notice", f"The answer was cut at {self.count} tokens; continue it, or raise max_new_tokens."
            )
        yield TokenEvent("done", self.stop_texts.rest(), timing=self._timing(), finish=finish)

    @property
    def _prompt_tokens(self) -> int:
        return len(self.prompt.token_ids) - self.prompt.started

    def _count_token(self) -> None:
        self.count += 1
        if self.count == 1:
            self.first_at = time.perf_counter()

    def _timing(self) -> Timing:
        since_first = time.perf_counter() - self.first_at
        return Timing(
            prompt_tokens=self._prompt_tokens,
            new_tokens=self.count,
            context_size=self.decoder.context_size,
            ttft_s=self.first_at - self.started if self.count else 0.0,
            decode_tok_s=(self.count - 1) / since_first if self.count > 1 else 0.0,
        )


def _end_tokens(model: MoeForCausalLM) -> set[int]:
    ends: set[int] = set()
    for end in (model.config.eos_token_id, model.generation_config.eos_token_id):
        ends.update([end] if isinstance(end, int) else end or [])
    return ends
