"""Render messages as training examples: token ids of the chat template, and a mask of the tokens in the loss.

    rendered = render_all(tokenizer, [example.messages for example in examples], max_length=1024)
    summary(rendered, 1024).cut                  # how many examples are longer
    preview(tokenizer, rendered[0])              # [("user\\nHi...", False, False), ("Paris.", True, False), ...]

The loss covers the assistant's answers and the control token that ends each of them. A plain text (role "text") is
trained in full. The first token of an example is never trained, because nothing precedes it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from studio.backend.data.examples import Example
from studio.backend.data.prompt import Messages, Piece, UnfitConversation, chat_pieces, is_control_piece
from studio.backend.data.row import BadRow
from studio.errors import StudioError

BINS = 20


@dataclass(frozen=True)
class Rendered:
    token_ids: Sequence[int]
    trained: Sequence[int]
    """1, or True, for each token in the loss."""
    cut: bool
    """Whether the example was truncated to the limit."""
    controls: tuple[str, ...] = ()
    """The model's control tokens that its messages hold as text."""
    unfit: UnfitConversation | None = None
    """Why the chat template can't render the example; it has no tokens then."""

    @property
    def trained_tokens(self) -> int:
        return sum(self.trained[1:])


@dataclass(frozen=True)
class Summary:
    """Token statistics of examples after truncation."""

    edges: list[int]
    """Bin edges of the histogram of lengths in tokens, one more than `counts`; upper edges are exclusive."""
    counts: list[int]
    cut: int
    """Truncated examples."""
    untrained: int
    """Examples without a trained token because they were truncated before the answer. They are left out."""
    tokens: int
    """Tokens of the other examples."""
    trained_tokens: int
    """Tokens in the loss."""
    controls: dict[str, int]
    """The number of examples that hold each control token as text."""

    @property
    def longest(self) -> int:
        """The most tokens that an example may have: the end of the last bin with examples."""
        return max((edge - 1 for edge, count in zip(self.edges[1:], self.counts, strict=True) if count), default=0)


class Span(NamedTuple):
    text: str
    trained: bool
    control: bool = False
    """Whether it is a control token, and not the same characters in a text."""


def render(tokenizer: PreTrainedTokenizerBase, messages: Messages, max_length: int) -> Rendered:
    """Return the first `max_length` tokens of an example and which of them are trained.

    Raises:
        UnfitConversation: the chat template can't render the example.
        StudioError: as `render_all`.
    """
    (rendered,) = render_all(tokenizer, [messages], max_length)
    if rendered.unfit:
        raise rendered.unfit
    return rendered


def render_all(
    tokenizer: PreTrainedTokenizerBase, conversations: Iterable[Messages], max_length: int
) -> list[Rendered]:
    """Return the rendered examples, which are tokenized in one call.

    Raises:
        StudioError: there is no default chat template, or the tokenizer has no character offsets.
    """
    if not tokenizer.is_fast:
        raise StudioError("This model's tokenizer has no character offsets. Add a tokenizer.json to the model.")
    found = control_pattern(tokenizer)
    examples: list[tuple[list[_Run], tuple[str, ...]] | UnfitConversation] = []
    texts: dict[str, None] = {}
    for messages in conversations:
        try:
            runs = [_Run(list(group)) for _, group in groupby(_marked(tokenizer, messages), _is_control)]
        except UnfitConversation as error:
            examples.append(error)
            continue
        controls = {token for message in messages for token in found.findall(message["content"])} if found else set()
        examples.append((runs, tuple(sorted(controls))))
        texts.update(dict.fromkeys(run.text for run in runs if run.text))
    encoded = _encoded(tokenizer, list(texts))
    return [
        Rendered((), (), False, unfit=each)
        if isinstance(each, UnfitConversation)
        else _rendered(*each, encoded, max_length)
        for each in examples
    ]


def unfit_rows(rendered: Mapping[int, Rendered], examples: Sequence[Example]) -> dict[int, BadRow]:
    """Return the examples that the chat template can't render as bad rows, by their index."""
    return {
        i: BadRow(examples[i].line, "", each.unfit.reason, each.unfit.remedy)
        for i, each in rendered.items()
        if each.unfit
    }


def control_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Return a pattern of the tokenizer's control tokens, None if it has none."""
    tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))) if tokens else None


def summary(rendered: Iterable[Rendered], max_length: int) -> Summary:
    """Return the statistics of the examples that could be rendered."""
    lengths: list[int] = []
    cut = untrained = tokens = trained_tokens = 0
    controls: Counter[str] = Counter()
    for each in rendered:
        if each.unfit:
            continue
        lengths.append(len(each.token_ids))
        cut += each.cut
        controls.update(each.controls)
        if each.trained_tokens:
            tokens += len(each.token_ids)
            trained_tokens += each.trained_tokens
        else:
            untrained += 1
    edges = np.unique(np.linspace(0, max_length + 1, BINS + 1).round().astype(int))
    counts, _ = np.histogram(lengths, edges)
    return Summary(edges.tolist(), counts.tolist(), cut, untrained, tokens, trained_tokens, dict(controls))


def preview(tokenizer: PreTrainedTokenizerBase, rendered: Rendered) -> list[Span]:
    """Return the decoded text as spans."""
    controls = tokenizer.added_tokens_decoder

    def kind(pair: tuple[int, int]) -> tuple[bool, bool]:
        return bool(pair[1]), pair[0] in controls

    pairs = groupby(zip(rendered.token_ids, rendered.trained, strict=True), kind)
    return [
        Span(str(tokenizer.decode([token_id for token_id, _ in group])), trained, control)
        for (trained, control), group in pairs
    ]


def _is_control(pair: tuple[Piece, bool]) -> bool:
    return is_control_piece(pair[0])


def _marked(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[tuple[Piece, bool]]:
    """Return the pieces of an example, each with whether it is trained.

    If the template does not end the last answer, append the eos token: without it, a model would never learn to stop.
    """
    eos = Piece("", control_id=tokenizer.eos_token_id)
    if messages[0]["role"] == "text":
        return [(Piece(messages[0]["content"]), True), (eos, True)]
    pieces = list(chat_pieces(tokenizer, messages, add_generation_prompt=False))
    answers = [i for i, piece in enumerate(pieces) if _message(piece, messages).get("role") == "assistant"]
    ends = [_turn_end(pieces, i) for i in answers]
    if answers and ends[-1] == answers[-1]:
        ends[-1] += 1
        pieces[ends[-1] :] = [eos]
    spans = [pair for pair in zip(answers, ends, strict=True) if _message(pieces[pair[0]], messages).get("train", True)]
    trained = {i for answer, end in spans for i in range(answer, end + 1)}
    return [(piece, i in trained) for i, piece in enumerate(pieces)]


def _message(piece: Piece, messages: Messages) -> dict[str, Any]:
    return {} if piece.message is None else messages[piece.message]


def _turn_end(pieces: list[Piece], answer: int) -> int:
    """Return the index of the control token right after an answer, or the answer's index if there is none."""
    for i, piece in enumerate(pieces[answer + 1 :], start=answer + 1):
        if is_control_piece(piece):
            return i
        if piece.text.strip():
            break
    return answer


class _Run:
    """Adjacent control tokens, or adjacent pieces of text, which are encoded together, as the chat does."""

    def __init__(self, pairs: list[tuple[Piece, bool]]) -> None:
        self.controls = [(piece.control_id, trained) for piece, trained in pairs if piece.control_id is not None]
        self.text = "" if self.controls else "".join(piece.text for piece, _ in pairs)
        self.marks = b"" if self.controls else b"".join(bytes([trained]) * len(piece.text) for piece, trained in pairs)


_Encoded = dict[str, tuple[list[int], list[tuple[int, int]]]]
"""The token ids and character offsets of each text."""


def _encoded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> _Encoded:
    if not texts:
        return {}
    options: dict[str, Any] = {"return_offsets_mapping": True, "return_attention_mask": False, "verbose": False}
    found = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, **options)
    return dict(zip(texts, zip(found["input_ids"], found["offset_mapping"], strict=True), strict=True))


def _rendered(runs: list[_Run], controls: tuple[str, ...], encoded: _Encoded, max_length: int) -> Rendered:
    token_ids: list[int] = []
    trained: list[bool] = []
    for run in runs:
        token_ids += [token_id for token_id, _ in run.controls]
        trained += [is_trained for _, is_trained in run.controls]
        if run.text:
            ids, offsets = encoded[run.text]
            token_ids += ids
            trained += _trained(run.marks, offsets)
    return Rendered(token_ids[:max_length], trained[:max_length], len(token_ids) > max_length, controls)


def _trained(marks: bytes, offsets: list[tuple[int, int]]) -> list[bool]:
    """Return whether each token holds a character of an answer, even if it starts with the template's blank before."""
    trained, before = [], 0
    for start, end in offsets:
        # Some tokenizers exclude the blank before a word from its offsets.
        trained.append(1 in marks[min(start, before) : end])
        before = end
    return trained
