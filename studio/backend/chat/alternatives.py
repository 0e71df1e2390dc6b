"""The most likely tokens of each step: kept while an answer is written, or computed again from its tokens.

kept = most_likely(logits, tokenizer, chosen=token_id)
again = alternatives(decoder, tokenizer, token_ids, index)        # of the step that chose token_ids[index]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedTokenizerFast

from studio.backend.chat.decoder import Decoder
from studio.errors import StudioError

MOST = 8


class Alternative(NamedTuple):
    """A token that a step could have chosen."""

    token_id: int
    text: str
    logprob: float
    """Log-probability in nats, before temperature, penalty and filters."""
    is_chosen: bool
    is_special: bool
    """Whether it ends the answer, or is another token that is not part of a text."""


def most_likely(logits: Tensor, tokenizer: PreTrainedTokenizerFast, chosen: int) -> tuple[Alternative, ...]:
    """Return the `MOST` most likely tokens, the most likely first, and the chosen one if it is not among them.

    Args:
        logits: `[1, vocabulary]`, on the CPU.
    """
    logprobs = logits[0] - logits.logsumexp(-1)  # [V]
    ids = logprobs.topk(min(MOST, len(logprobs))).indices.tolist()
    ids += [] if chosen in ids else [chosen]
    backend = tokenizer.backend_tokenizer
    special = tokenizer.all_special_ids
    values = logprobs[ids].tolist()
    return tuple(
        Alternative(each, backend.decode([each], skip_special_tokens=False), value, each == chosen, each in special)
        for each, value in zip(ids, values, strict=True)
    )


def alternatives(
    decoder: Decoder, tokenizer: PreTrainedTokenizerFast, token_ids: Sequence[int], index: int
) -> tuple[Alternative, ...]:
    """Compute the most likely tokens at `index` again. The caller must hold the model, as by `Engine.turn`.

    Raises:
        StudioError: there is no token at `index`, or a token is not in the vocabulary.
    """
    vocab_size = decoder.model.config.vocab_size
    if not 0 < index < len(token_ids) or not all(0 <= each < vocab_size for each in token_ids):
        raise StudioError("This token has no alternatives: it is not in the answer. Reload the page.")
    logits = decoder.prefill(token_ids[:index], room=0)  # [1, V]
    return most_likely(logits.cpu(), tokenizer, token_ids[index])
