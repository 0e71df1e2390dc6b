"""Encode messages as token ids: chat templates, protection against control tokens in texts, context overflow."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, groupby, zip_longest
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from studio.errors import StudioError

Messages = Sequence[dict[str, Any]]
RAW = "raw"
"""Role of a text that the model continues as it stands, without a chat template."""
ROLES = ("system", "user", "assistant", RAW)
MAX_CHARACTERS = 1_000_000
# Fallback for base models without a chat template, which continue the text.
PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


class UnfitConversation(StudioError):
    """A conversation that the chat template can't render; `reason` and `remedy` are those of a bad row."""

    def __init__(self, why: str, remedy: str) -> None:
        super().__init__(f"The model's chat template {why}. {remedy}")
        self.reason, self.remedy = f"does not fit the model's chat template, which {why}", remedy


@dataclass(frozen=True)
class Prompt:
    token_ids: list[int]
    notices: tuple[str, ...] = ()
    started: int = 0
    """How many of the last tokens are the beginning of the answer, which is continued."""


def check_text(text: object, what: str) -> None:
    """Raise StudioError if the text can't be classified."""
    if not isinstance(text, str) or not text.strip():
        raise StudioError(f"{what} is empty. Write something to classify.")
    if len(text) > MAX_CHARACTERS:
        raise StudioError(f"{what} has {len(text):,} characters. Keep it under {MAX_CHARACTERS:,}.")
    if re.search("[\ud800-\udfff]", text):
        raise StudioError(f"{what} holds an invalid character (half of a surrogate pair). Delete it.")


def fit_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, context_size: int, max_new_tokens: int
) -> Prompt:
    """Return the prompt for an answer, without the oldest turns if they don't fit.

    If the last message is the assistant's, the answer continues it. A text of the role `RAW` is the whole prompt.

    Raises:
        StudioError: there is nothing to answer, or the last message alone is too long.
    """
    kept = _checked(messages)
    if kept[0]["role"] == RAW:
        return _fit_raw(tokenizer, kept, context_size, max_new_tokens)
    start = encode_plain(tokenizer, kept.pop()["content"]) if kept[-1]["role"] == "assistant" else []
    notices = [] if tokenizer.chat_template else ["This model has no chat template: it continues your text."]
    room = context_size - min(max_new_tokens, context_size // 2) - len(start)
    token_ids = encode_chat(tokenizer, kept)
    dropped = 0
    if len(token_ids) > room and (shorter := _shorter(kept)):
        # Each try encodes all that is left, so bisect the number of turns to drop.
        fewest = bisect_left(shorter, True, key=lambda some: len(encode_chat(tokenizer, some)) <= room)
        remaining = shorter[min(fewest, len(shorter) - 1)]
        token_ids, dropped = encode_chat(tokenizer, remaining), len(kept) - len(remaining)
    _require_room(token_ids, room, context_size)
    if dropped:
        notices.append(
            f"The conversation is longer than the model's context of {context_size:,} tokens: the oldest "
            f"{dropped} message{'s were' if dropped > 1 else ' was'} left out of this answer."
        )
    return Prompt(token_ids + start, tuple(notices), len(start))


def _fit_raw(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], context_size: int, max_new_tokens: int
) -> Prompt:
    text, start = messages[0]["content"], "".join(message["content"] for message in messages[1:])
    # With the token that begins every text of some tokenizers; control tokens in the text itself are plain text.
    token_ids = tokenizer(text, split_special_tokens=True)["input_ids"]
    started = encode_plain(tokenizer, start)
    _require_room(token_ids, context_size - min(max_new_tokens, context_size // 2) - len(started), context_size)
    return Prompt(token_ids + started, (), len(started))


def _require_room(token_ids: list[int], room: int, context_size: int) -> None:
    if len(token_ids) > room:
        raise StudioError(
            f"The message is too long: {len(token_ids):,} tokens. The model's context holds {context_size:,}, and "
            f"{context_size - room:,} are reserved for the answer. Shorten the message or lower max_new_tokens."
        )


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """Return the token ids of the rendered chat with the generation prompt.

    Control tokens come only from the template: the same characters in a message are encoded as plain text.

    Raises:
        StudioError: the chat template rejects the messages.
    """
    return encode_pieces(tokenizer, chat_pieces(tokenizer, messages, add_generation_prompt=True))


def default_system_prompt(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the system prompt that the chat template writes if a chat has none; empty if it writes none."""
    if not tokenizer.chat_template:
        return ""
    system, user = {"role": "system", "content": "\ue001"}, {"role": "user", "content": "\ue000"}
    try:
        without = _templated(tokenizer, [user], [user["content"]], False).partition("\ue000")[0]
        given = _templated(tokenizer, [system, user], [system["content"], user["content"]], False)
    except StudioError:  # the template rejects system messages
        return ""
    before, _, after = given.partition("\ue000")[0].partition("\ue001")
    is_same = without.startswith(before) and without[len(before) :].endswith(after)
    return without[len(before) : len(without) - len(after)] if is_same else ""


def encode_pieces(tokenizer: PreTrainedTokenizerBase, pieces: Iterable[Piece]) -> list[int]:
    """Return the token ids of the pieces; adjacent text pieces are encoded together."""
    token_ids: list[int] = []
    for is_control, group in groupby(pieces, is_control_piece):
        if is_control:
            token_ids += [piece.control_id for piece in group if piece.control_id is not None]
        else:
            token_ids += encode_plain(tokenizer, "".join(piece.text for piece in group))
    return token_ids


def encode_plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a text, with control tokens in it encoded as plain text."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] if text else []


@dataclass(frozen=True)
class Piece:
    """A part of a rendered chat: the content of a message, text of the template, or one of its control tokens."""

    text: str
    message: int | None = None
    """Index of the message that this content belongs to."""
    control_id: int | None = None


def is_control_piece(piece: Piece) -> bool:
    return piece.control_id is not None


def chat_pieces(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, *, add_generation_prompt: bool
) -> Iterator[Piece]:
    """Yield the pieces of the rendered chat, as the template renders it with placeholders for the contents.

    It is compared with the chat rendered with the contents themselves, because a template may strip them.

    Raises:
        UnfitConversation: the chat template rejects the messages, or can't be followed.
        StudioError: the model has several chat templates, and none is the default.
    """
    placeholders = [f"\ue000{i}\ue001" for i in range(len(messages))]
    text = _templated(tokenizer, messages, placeholders, add_generation_prompt)
    parts = re.split("\ue000(\\d+)\ue001", text)
    real = _templated(tokenizer, messages, [message["content"] for message in messages], add_generation_prompt)
    contents = _contents(parts, [messages[int(i)]["content"] for i in parts[1::2]], real)
    for i, part in enumerate(parts):
        if i % 2:
            yield Piece(contents[i // 2], message=int(part))
        else:
            yield from _template_pieces(tokenizer, part)


def _templated(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, contents: Sequence[str], add_generation_prompt: bool
) -> str:
    """Return the rendered chat with these contents. Raises as `chat_pieces`."""
    template: Any = tokenizer.chat_template or PLAIN_TEMPLATE
    if isinstance(template, dict):
        if "default" not in template:
            names = ", ".join(sorted(template))
            raise StudioError(
                f"The model has several chat templates ({names}), but none is called default. Rename one of them in "
                "its tokenizer_config.json, or keep only one in its chat_template.jinja."
            )
        template = template["default"]
    turns = [{"role": message["role"], "content": text} for message, text in zip(messages, contents, strict=True)]
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
    try:
        return tokenizer.apply_chat_template(turns, chat_template=template, **options)  # type: ignore[return-value]
    except TemplateError as error:
        why = f"rejects this conversation: {str(error).rstrip('.')}"
        raise UnfitConversation(why, "Correct the order of its messages, or leave one out.") from error


def _contents(parts: Sequence[str], contents: list[str], real: str) -> list[str]:
    """Return the contents as the template writes them, which may strip or shorten them.

    Args:
        parts: the text around the placeholders, and their numbers.
        real: the chat rendered with the contents.

    Raises:
        UnfitConversation: the text around the contents depends on them.
    """
    for candidate in (contents, [text.strip() for text in contents]):
        if "".join(chain.from_iterable(zip_longest(parts[::2], candidate, fillvalue=""))) == real:
            return candidate
    around = [re.escape(part) for part in parts[::2]]
    around[-1] += r"\Z"
    # Each part is taken where it first occurs: to try the later places, too, would take a power of the length.
    pattern = around[0] + "".join(f"(?>(.*?){part})" for part in around[1:])
    found = re.fullmatch(pattern, real, re.S)
    # A content with text of the template in it could match at a wrong place, as another role.
    if found is None or not all(text in content for text, content in zip(found.groups(), contents, strict=True)):
        raise UnfitConversation(
            "changes what is around a message by its content, so the prompt can't be built",
            "Simplify the template in the model's tokenizer_config.json, or leave that message out.",
        )
    return list(found.groups())


def _template_pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> Iterator[Piece]:
    """Split text of the template at its control tokens."""
    controls, pattern = _added_tokens(tokenizer, len(tokenizer))
    for part in pattern.split(text) if controls else [text]:
        yield Piece(part, control_id=controls.get(part))


@lru_cache(maxsize=4)
def _added_tokens(tokenizer: PreTrainedTokenizerBase, size: int) -> tuple[dict[str, int], re.Pattern[str]]:
    """Return the ids of the control tokens, and a pattern that splits text at them.

    They are cached, because the tokenizer collects them at each call.
    """
    controls = {token.content: token_id for token_id, token in tokenizer.added_tokens_decoder.items()}
    longest_first = sorted(controls, key=len, reverse=True)
    return controls, re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")


def _checked(messages: Messages) -> list[dict[str, str]]:
    if (
        not any(message.get("role") in ("user", RAW) for message in messages[-2:])
        or messages[-1].get("role") == "system"
    ):
        raise StudioError("Write a message first: there is nothing to answer.")
    for message in messages:
        if message.get("role") not in ROLES or not isinstance(message.get("content"), str):
            raise StudioError(f"A message needs a role ({', '.join(ROLES)}) and a text.")
        if len(message["content"]) > MAX_CHARACTERS:
            raise StudioError(
                f"The message is too long: {len(message['content']):,} characters. Keep it under {MAX_CHARACTERS:,}."
            )
    if not messages[-1]["content"].strip():
        raise StudioError("The message is empty. Write something to answer.")
    return [dict(message) for message in messages]


def _shorter(messages: list[dict[str, str]]) -> list[list[dict[str, str]]]:
    """Return the messages without the oldest question and its answer, without the two oldest, and so on.

    System messages stay, and so does the last question.
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == "user"]
    return [
        [message for message in messages[:start] if message["role"] == "system"] + messages[start:]
        for start in turns[1:]
    ]
