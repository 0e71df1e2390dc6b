"""Render messages as training examples: token ids of the chat template, and a mask of the tokens in the loss.

    rendered = [render(tokenizer, example.messages, max_length=1024) for example in dataset.examples]
    summary(rendered, 1024).cut                  # how many examples are longer
    preview(tokenizer, rendered[0])              # [("<|im_start|>user\\nHi...", False), ("Paris.<|im_end|>", True)]

The loss covers the assistant's answers and the control token that ends each of them. A plain text (role "text") is
trained in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from transformers import PreTrainedTokenizerBase

from studio.backend.data.prompt import Messages, Piece, chat_pieces, is_control_piece
from studio.errors import StudioError

BINS = 20


@dataclass(frozen=True)
class Rendered:
    token_ids: list[int]
    trained: list[bool]
    cut: bool
    """Whether the example was truncated to the limit."""


@dataclass(frozen=True)
class Summary:
    """Token statistics of a data set after truncation."""

    edges: list[int]
    """Bin edges of the histogram of lengths in tokens, one more than `counts`; upper edges are exclusive."""
    counts: list[int]
    cut: int
    """Truncated examples."""
    untrained: int
    """Examples without a trained token because they were truncated before the answer."""
    tokens: int
    trained_tokens: int


def render(tokenizer: PreTrainedTokenizerBase, messages: Messages, max_length: int) -> Rendered:
    """Return the first `max_length` tokens of an example and which of them are trained.

    Raises:
        StudioError: the chat template rejects the messages, or the tokenizer has no character offsets.
    """
    token_ids: list[int] = []
    trained: list[bool] = []
    for is_control, group in groupby(_marked(tokenizer, messages), lambda pair: is_control_piece(pair[0])):
        pairs = list(group)
        ids, marks = _controls(pairs) if is_control else _encoded(tokenizer, pairs)
        token_ids += ids
        trained += marks
    return Rendered(token_ids[:max_length], trained[:max_length], cut=len(token_ids) > max_length)


def summary(rendered: Sequence[Rendered], max_length: int) -> Summary:
    lengths = [len(each.token_ids) for each in rendered]
    edges = np.unique(np.linspace(0, max_length + 1, BINS + 1).round().astype(int))
    counts, _ = np.histogram(lengths, edges)
    return Summary(
        edges=edges.tolist(),
        counts=counts.tolist(),
        cut=sum(each.cut for each in rendered),
        untrained=sum(not any(each.trained) for each in rendered),
        tokens=sum(lengths),
        trained_tokens=sum(sum(each.trained) for each in rendered),
    )


def preview(tokenizer: PreTrainedTokenizerBase, rendered: Rendered) -> list[tuple[str, bool]]:
    """Return the decoded text as spans of (text, whether it is trained)."""
    spans = groupby(zip(rendered.token_ids, rendered.trained, strict=True), lambda pair: pair[1])
    return [(str(tokenizer.decode([token_id for token_id, _ in span])), trained) for trained, span in spans]


def _marked(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[tuple[Piece, bool]]:
    """Return the pieces of an example, each with whether it is trained.

    If the template does not end the last answer, append the eos token: without it, a model would never learn to stop.
    """
    eos = Piece("", control_id=tokenizer.eos_token_id)
    if messages[0]["role"] == "text":
        return [(Piece(messages[0]["content"]), True), (eos, True)]
    pieces = list(chat_pieces(tokenizer, messages, add_generation_prompt=False))
    answers = [i for i, piece in enumerate(pieces) if _role(piece, messages) == "assistant"]
    ends = [_turn_end(pieces, i) for i in answers]
    if answers and ends[-1] == answers[-1]:
        ends[-1] += 1
        pieces[ends[-1] :] = [eos]
    trained = {i for answer, end in zip(answers, ends, strict=True) for i in range(answer, end + 1)}
    return [(piece, i in trained) for i, piece in enumerate(pieces)]


def _role(piece: Piece, messages: Messages) -> str | None:
    return None if piece.message is None else messages[piece.message]["role"]


def _turn_end(pieces: list[Piece], answer: int) -> int:
    """Return the index of the control token right after an answer, or the answer's index if there is none."""
    for i, piece in enumerate(pieces[answer + 1 :], start=answer + 1):
        if is_control_piece(piece):
            return i
        if piece.text.strip():
            break
    return answer


def _controls(pairs: list[tuple[Piece, bool]]) -> tuple[list[int], list[bool]]:
    kept = [(piece.control_id, trained) for piece, trained in pairs if piece.control_id is not None]
    return [token_id for token_id, _ in kept], [trained for _, trained in kept]


def _encoded(tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[Piece, bool]]) -> tuple[list[int], list[bool]]:
    """Encode adjacent text pieces in one call, as the chat does.

    A token is trained if it holds a character of an answer, even if it starts with the template's blank before it.
    """
    if not tokenizer.is_fast:
        raise StudioError("This model's tokenizer has no character offsets. Add a tokenizer.json to the model.")
    text = "".join(piece.text for piece, _ in pairs)
    if not text:
        return [], []
    marks = b"".join(bytes([trained]) * len(piece.text) for piece, trained in pairs)
    encoding = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )
    trained, before = [], 0
    for start, end in encoding["offset_mapping"]:
        # Some tokenizers exclude the blank before a word from its offsets.
        trained.append(1 in marks[min(start, before) : end])
        before = end
    return encoding["input_ids"], trained
