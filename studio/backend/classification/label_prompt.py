"""Prompts that ask for one of several labels: a template with {text} and {labels}, encoded up to the label.

    prompts = LabelPrompts(tokenizer, resolve_template("continuation"), ("sport", "science"), context_size=8192)
    prompt = prompts.of("The match ended in a draw.")
    prompt.token_ids, prompt.labels             # the tokens before the label, and the tokens of each label

A text that is too long is truncated; the template and the labels never are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from transformers import PreTrainedTokenizerFast

from studio.backend.data.prompt import Piece, chat_pieces, encode_pieces, encode_plain, is_control_piece
from studio.errors import StudioError

Cut = Literal["middle", "end"]
TEMPLATES = {
    "topic": "Which of these fits the text best: {labels}?\n\nText: {text}\n\nAnswer with one of them only.",
    "sentiment": "How does the author feel: {labels}?\n\n{text}",
    "message": "Decide whether a message is {labels}.\n\nMessage: {text}\n\nAnswer with the kind of message only.",
    "continuation": "Labels: {labels}\nText: {text}\nLabel:",
}
"""Named templates. The last suits most labels, and base models without chat tuning, which continue with the label."""
DEFAULT_TEMPLATE = "continuation"
"""The best of TEMPLATES with calibration on sections of Debian packages."""
FEWEST_LABELS, MOST_LABELS = 2, 64
LONGEST_LABEL = 100
LONGEST_TEMPLATE = 4000
SPARE_TOKENS = 4
"""Reserve, because a label may change the tokenization of the text just before it."""
SMALLEST_ROOM = 16
"""Minimum tokens for a text; a shorter excerpt would be useless."""
GAP = " … "


@dataclass(frozen=True)
class LabelPrompt:
    token_ids: list[int]
    """The tokens before the label."""
    labels: list[list[int]]
    """The tokens of each label."""
    shared: int
    """Number of leading tokens that all prompts of the template share; at least one token is not shared."""
    text: slice
    """Position of the text's tokens, which begin after the shared ones."""
    cut: str
    """A notice if the text was truncated, else ""."""

    @property
    def unread(self) -> int:
        """Number of tokens after the shared ones."""
        return len(self.token_ids) - self.shared


def parse_labels(text: str) -> tuple[str, ...]:
    """Parse labels separated by commas or line breaks. Raises as `check_labels`."""
    return check_labels(re.split(r"[,\n]", text.strip()) if text.strip() else [])


def check_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the labels with normalized whitespace.

    Raises:
        StudioError: there are too few or too many labels, one is empty or too long, or two differ only in case.
    """
    if not isinstance(labels, list | tuple) or not all(isinstance(label, str) for label in labels):
        raise StudioError("Labels are a list of texts. Write at least two, separated by commas.")
    if len(labels) > MOST_LABELS:
        raise StudioError(
            f"There are {len(labels):,} labels; classification without training supports at most {MOST_LABELS}. Leave "
            "some out, or train a classifier."
        )
    tidied = tuple(" ".join(label.split()) for label in labels)
    if len(tidied) < FEWEST_LABELS:
        only = f"{tidied[0]!r} is the only label" if tidied and tidied[0] else "There are no labels"
        raise StudioError(f"{only}, which leaves nothing to choose. Write at least two, separated by commas.")
    for number, label in enumerate(tidied, start=1):
        _check_label(number, label)
    _check_twins(tidied)
    return tidied


def resolve_template(name_or_text: str) -> str:
    """Return the template of that name, or the text itself.

    Raises:
        StudioError: the template does not contain {text} exactly once, or is too long.
    """
    if not isinstance(name_or_text, str) or re.search("[\ud800-\udfff]", name_or_text):
        raise StudioError(f"A template is a text, or the name of one: {', '.join(TEMPLATES)}.")
    template = TEMPLATES.get(name_or_text, name_or_text)
    if (count := template.count("{text}")) != 1:
        has = f"holds {{text}} {count} times" if count else "has no {text} in it"
        raise StudioError(
            f"The template {has}: put it exactly once, where the text belongs, or name one of {', '.join(TEMPLATES)}."
        )
    if len(template) > LONGEST_TEMPLATE:
        raise StudioError(f"The template has {len(template):,} characters; keep it under {LONGEST_TEMPLATE:,}.")
    return template


def check_cut(cut: str) -> None:
    """Raise StudioError if `cut` is not a valid place to truncate."""
    if cut not in get_args(Cut):
        raise StudioError(f"Texts are cut in the {' or at the '.join(get_args(Cut))}, not {cut!r}. Pick one of them.")


class LabelPrompts:
    """Encode the prompts of one template and its labels.

    Raises:
        StudioError: template and labels leave no room for a text, or two labels have the same tokens.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        template: str,
        labels: Sequence[str],
        context_size: int,
        cut: Cut = "middle",
    ) -> None:
        self.tokenizer, self.template, self.labels, self.cut = tokenizer, template, labels, cut
        a, z = (encode_pieces(tokenizer, self._pieces(text)) for text in ("a", "Z"))
        self.shared_ids = a[: _common_length(a, z)]
        self._after = min(_common_length(a[::-1], z[::-1]), len(a) - len(self.shared_ids))
        _, _, label_ids = self._split("a")
        self._check_distinct(label_ids)
        self.room = context_size - max(map(len, label_ids)) - SPARE_TOKENS
        if self.room - len(a) < SMALLEST_ROOM:
            raise StudioError(
                f"Template and labels take {context_size - self.room + len(a):,} of the {context_size:,} tokens of the "
                "model's context, which leaves no room for a text. Shorten them."
            )

    @property
    def notices(self) -> tuple[str, ...]:
        """Notices about all prompts."""
        if self.tokenizer.chat_template:
            return ()
        return ("This model has no chat template: it continues the text of the template.",)

    def of(self, text: str) -> LabelPrompt:
        kept, cut = self._fitted(text)
        whole, before, labels = self._split(kept)
        token_ids = whole[:before]
        shared = min(_common_length(self.shared_ids, token_ids), len(token_ids) - 1)
        end = max(min(len(whole) - self._after, len(token_ids)), shared)
        return LabelPrompt(token_ids, labels, shared, slice(shared, end), cut)

    def _fitted(self, text: str) -> tuple[str, str]:
        """Return as much of the text as fits, and a notice if it was truncated."""
        excess = len(encode_pieces(self.tokenizer, self._pieces(text))) - self.room
        if excess <= 0:
            return text, ""
        places: list[tuple[int, int]] = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )["offset_mapping"]
        kept, count = text, len(places)
        while excess > 0:
            count -= excess
            kept = self._shortened(text, places, count)
            excess = len(encode_pieces(self.tokenizer, self._pieces(kept))) - self.room
        where = "in its middle" if self.cut == "middle" else "at its end"
        return kept, (
            f"The text was cut {where}: {count:,} of its {len(places):,} tokens fit next to the template and the "
            "labels."
        )

    def _shortened(self, text: str, places: list[tuple[int, int]], count: int) -> str:
        """Return `count` tokens of the text: the first ones, or half of them from each end."""
        if self.cut == "end":
            return text[: places[max(count, 1) - 1][1]]
        first = max(count - count // 2, 1)
        return text[: places[first - 1][1]] + GAP + text[places[-max(count // 2, 1)][0] :]

    def _split(self, text: str) -> tuple[list[int], int, list[list[int]]]:
        """Return the prompt's tokens, the number of them before every label, and the tokens of each label.

        A tokenizer may merge the first characters of a label with the text before it. The merged token then belongs to
        the label.
        """
        pieces = list(self._pieces(text))
        last = max((i for i, piece in enumerate(pieces) if is_control_piece(piece)), default=-1)
        head = encode_pieces(self.tokenizer, pieces[: last + 1])
        tail = "".join(piece.text for piece in pieces[last + 1 :])
        blank = "" if self.tokenizer.chat_template or tail[-1:].isspace() else " "
        alone = encode_plain(self.tokenizer, tail)
        wholes = [encode_plain(self.tokenizer, tail + blank + label) for label in self.labels]
        before = min(_common_length(alone, whole) for whole in wholes)
        return head + alone, len(head) + before, [whole[before:] for whole in wholes]

    def _pieces(self, text: str) -> Iterator[Piece]:
        content = self._filled(text)
        if not self.tokenizer.chat_template:
            return iter([Piece(content)])
        return chat_pieces(self.tokenizer, [{"role": "user", "content": content}], add_generation_prompt=True)

    def _filled(self, text: str) -> str:
        """Fill both slots in one pass, so that slots inside a text or a label are not filled."""
        slots = {"{text}": text, "{labels}": _listed(self.labels)}
        return "".join(slots.get(part, part) for part in re.split(r"(\{text\}|\{labels\})", self.template))

    def _check_distinct(self, label_ids: list[list[int]]) -> None:
        seen: dict[tuple[int, ...], str] = {}
        for label, ids in zip(self.labels, label_ids, strict=True):
            if not ids:
                raise StudioError(f"The label {label!r} has no tokens in this model's vocabulary. Rename it.")
            if twin := seen.get(tuple(ids)):
                raise StudioError(f"The labels {twin!r} and {label!r} have the same tokens. Rename one of them.")
            seen[tuple(ids)] = label


def _check_label(number: int, label: str) -> None:
    if not label:
        raise StudioError(f"Label {number} is empty. Write it, or delete the comma.")
    if len(label) > LONGEST_LABEL:
        raise StudioError(
            f"The label {label[:40] + '…'!r} has {len(label):,} characters; keep each under {LONGEST_LABEL}."
        )
    if not label.isprintable():
        raise StudioError(f"The label {label!r} holds a character that can't be shown. Delete it.")


def _check_twins(labels: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for label in labels:
        if twin := seen.get(label.casefold()):
            raise StudioError(f"The labels {twin!r} and {label!r} are the same. Delete one of them.")
        seen[label.casefold()] = label


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(labels[:-1]) + " or " + labels[-1]


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    for i, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return i
    return min(len(first), len(second))
