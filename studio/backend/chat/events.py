"""The events of an answer, which the page, the command line and the API all consume.

for event in engine.generate(messages, sampling): ...     # TokenEvent
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from jetmoe.routing import RoutingTrace


@dataclass(frozen=True)
class Timing:
    """Measured by the engine; seconds, tokens and tokens per second."""

    prompt_tokens: int
    new_tokens: int
    context_size: int
    ttft_s: float
    """From the start of the prefill to the first token."""
    decode_tok_s: float
    """Tokens after the first, per second; 0.0 while there is only one."""


@dataclass(frozen=True)
class TokenEvent:
    """One step of an answer.

    kind:
        queued: another answer is being written; `place` is 1 for the next in line. May come several times.
        notice: `text` is a sentence for the person (older turns were dropped, answer cut at the limit ...).
        prompt: the prompt has been read; `trace` holds the rows of all its tokens.
        token: `text` is what the token adds (may be ""), `trace` holds its one row.
        done: the answer is complete; `text` is what was held back, `finish` says why it ended.
    """

    kind: Literal["queued", "notice", "prompt", "token", "done"]
    text: str = ""
    token_id: int | None = None
    logprob: float | None = None
    trace: RoutingTrace | None = None
    timing: Timing | None = None
    place: int = 0
    finish: Literal["", "stop", "length", "cancelled"] = ""
