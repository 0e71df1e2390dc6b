"""Events of an answer. The page, the command line and the API consume them.

for event in engine.generate(messages, sampling): ...     # TokenEvent
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from jetmoe.routing import RoutingTrace
    from studio.backend.chat.alternatives import Alternative


@dataclass(frozen=True)
class Timing:
    """Timings measured by the engine, in seconds, tokens and tokens per second."""

    prompt_tokens: int
    new_tokens: int
    context_size: int
    ttft_s: float
    """Time to first token, from the start of the prefill."""
    decode_tok_s: float
    """Tokens after the first, per second; 0.0 until there is a second token."""


@dataclass(frozen=True)
class TokenEvent:
    """One step of an answer.

    kind:
        queued: another request is running; `place` is 1 for the next in the queue. May come several times.
        notice: `text` is a sentence for the user (older turns were dropped, answer cut at the limit ...).
        prompt: the prefill is done; `trace` holds the rows of all prompt tokens.
        token: `text` is the text that the token adds (may be ""), `trace` holds the token's row, `alternatives` the
            most likely tokens of the step.
        done: the answer is complete; `text` is the remaining text, `finish` is the reason.
    """

    kind: Literal["queued", "notice", "prompt", "token", "done"]
    text: str = ""
    token_id: int | None = None
    logprob: float | None = None
    trace: RoutingTrace | None = None
    timing: Timing | None = None
    place: int = 0
    finish: Literal["", "stop", "length", "cancelled"] = ""
    alternatives: tuple[Alternative, ...] = ()
