"""Conversations as stored in the browser, and the operations on them. All functions are pure.

    conversation = append_user(Conversation(), "Hello")
    conversation = append_assistant(conversation, "Hi!", Answer(model_id="starter"))
    stored = to_json(conversation)      # for browser storage
    conversation = from_json(stored)    # checks every field, because browser input is untrusted

A conversation is a system prompt and alternating user and assistant turns. An assistant turn refers to its trace by an
id created by the server, and stores the token ids from which the trace can be recomputed. When an adapter and the base
model answer side by side, the turn holds the adapter's answer, and its `base` is the base model's reply.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from studio.backend.data.prompt import RAW
from studio.errors import StudioError
from studio.ui.common.longest_text import longest_text

MAX_TURNS = 400
MAX_VARIANTS = 20
MAX_STORED = 1_500_000
"""Characters of JSON; browser storage holds about 5 MB, and the value is encrypted there."""
EDITED = "edited"
"""How an answer ended that the user has changed."""
MAX_TITLE = 120
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Answer:
    """Data of an assistant turn, in addition to its text."""

    model_id: str = ""
    trace_id: str = ""
    token_ids: tuple[int, ...] = ()
    prompt_tokens: int = 0
    ttft_s: float = 0.0
    decode_tok_s: float = 0.0
    context_size: int = 0
    finish: str = ""
    notices: tuple[str, ...] = ()
    adapter: str = ""
    """Id of the adapter that wrote the answer; empty for the base model."""
    adapter_title: str = ""


@dataclass(frozen=True)
class Reply:
    """The base model's reply to the same question, side by side with an adapter's answer."""

    content: str
    answer: Answer


@dataclass(frozen=True)
class Turn:
    role: Literal["user", "assistant"]
    content: str
    answer: Answer | None = None
    base: Reply | None = None
    others: tuple[Turn, ...] = ()
    """The other variants of the answer."""
    number: int = 0
    """Place of this answer among all its variants."""

    def variants(self) -> tuple[Turn, ...]:
        """Return all variants of the answer, without references to each other."""
        return (*self.others[: self.number], replace(self, others=(), number=0), *self.others[self.number :])

    def on_base_side(self) -> Turn:
        """Return the turn for the base model's side, with a notice if the base model was not asked."""
        if self.base is not None:
            return Turn(self.role, self.base.content, self.base.answer)
        if self.answer is None or not self.answer.adapter:
            return self
        notice = f"The base model was not asked; this is the answer of {self.answer.adapter_title}."
        return replace(self, answer=replace(self.answer, notices=(*self.answer.notices, notice)))


@dataclass(frozen=True)
class Conversation:
    system: str = ""
    turns: tuple[Turn, ...] = field(default=())
    id: str = ""
    """Where the browser stores it: 32 hexadecimal digits, or empty for a conversation that is not stored yet."""
    title: str = ""
    """Name given by the user; the list shows the first question if it is empty."""
    raw: bool | None = None
    """Whether the model continues the text of all turns, without a chat template; None: as suits the model."""

    def identified(self) -> Conversation:
        """Return the conversation with an id, a new one if it has none."""
        return self if self.id else replace(self, id=uuid.uuid4().hex)

    def messages(self, start: str = "") -> list[dict[str, str]]:
        """Return the messages for the engine; `start` is the beginning of the answer, if there is one."""
        system = [{"role": "system", "content": self.system}] if self.system.strip() else []
        begun = [{"role": "assistant", "content": start}] if start else []
        if self.raw:
            return [{"role": RAW, "content": "".join(turn.content for turn in self.turns)}, *begun]
        return system + [{"role": turn.role, "content": turn.content} for turn in self.turns] + begun

    def answers(self) -> list[int]:
        """Return the indexes of the assistant turns."""
        return [index for index, turn in enumerate(self.turns) if turn.role == "assistant"]

    def base_side(self) -> Conversation:
        """Return the conversation with the base model's replies, which it continues."""
        return replace(self, turns=tuple(turn.on_base_side() for turn in self.turns))

    @property
    def has_base_side(self) -> bool:
        return any(turn.base is not None for turn in self.turns)


def checked_text(text: Any, name: str = "message") -> str:
    """Return the text if it may be sent.

    Raises:
        StudioError: it is too long or not text.
    """
    if not isinstance(text, str):
        raise StudioError(f"The {name} is not text. Reload the page and send it again.")
    if len(text) > longest_text():
        raise StudioError(
            f"The {name} has {len(text):,} characters, but at most {longest_text():,} can be sent. Shorten it and send "
            "it again."
        )
    return text.encode("utf-8", "replace").decode()


def append_user(conversation: Conversation, text: str) -> Conversation:
    text = checked_text(text)
    if not text.strip():
        raise StudioError("The message is empty. Type a question, or click one of the examples.")
    if len(conversation.turns) >= MAX_TURNS:
        raise StudioError(f"This conversation is full: it has {MAX_TURNS} messages. Start a new one.")
    return replace(conversation, turns=(*conversation.turns, Turn("user", text)))


def append_assistant(
    conversation: Conversation,
    text: str,
    answer: Answer,
    base: Reply | None = None,
    others: tuple[Turn, ...] = (),
    number: int | None = None,
) -> Conversation:
    """Append an answer; `others` are its other variants, and `number` is its place among them, by default the last."""
    others = others[1 - MAX_VARIANTS :]
    turn = Turn("assistant", text, answer, base, others, len(others) if number is None else number)
    return replace(conversation, turns=(*conversation.turns, turn))


def with_answer(conversation: Conversation, index: int, answer: Answer, on_base_side: bool = False) -> Conversation:
    """Replace the answer data of turn `index`, or those of the base model's reply."""
    turn = conversation.turns[index]
    if on_base_side and turn.base is not None:
        turn = replace(turn, base=replace(turn.base, answer=answer))
    else:
        turn = replace(turn, answer=answer)
    return replace(conversation, turns=(*conversation.turns[:index], turn, *conversation.turns[index + 1 :]))


def retry(conversation: Conversation) -> Conversation:
    """Remove the last answer, so that its question can be asked again."""
    turns = conversation.turns[:-1] if _ends_with_answer(conversation) else conversation.turns
    if not turns:
        raise StudioError("There is no question to ask again. Send a message first.")
    return replace(conversation, turns=turns)


def last_answer(conversation: Conversation) -> Turn:
    if not _ends_with_answer(conversation):
        raise StudioError("There is no answer to change. Send a message first.")
    return conversation.turns[-1]


def switch(conversation: Conversation, step: int) -> Conversation:
    """Show another variant of the last answer: the next one, or with a step of -1 the one before."""
    turn = last_answer(conversation)
    variants, number = turn.variants(), turn.number + step
    if not 0 <= number < len(variants):
        raise StudioError("There is no such variant of the answer. Reload the page.")
    others = variants[:number] + variants[number + 1 :]
    shown = replace(variants[number], others=others, number=number)
    return replace(conversation, turns=(*conversation.turns[:-1], shown))


def edit_answer(conversation: Conversation, index: int, text: str) -> Conversation:
    """Replace the text of the answer in turn `index`. Its tokens, and with them its routing, no longer apply."""
    turn, text = conversation.turns[index], checked_text(text, "answer")
    if not text.strip():
        raise StudioError("The answer is empty. Write its beginning, or ask again.")
    before = turn.answer or Answer()
    answer = Answer(before.model_id, adapter=before.adapter, adapter_title=before.adapter_title, finish=EDITED)
    turns = (*conversation.turns[:index], replace(turn, content=text, answer=answer), *conversation.turns[index + 1 :])
    return replace(conversation, turns=turns)


def up_to(conversation: Conversation, index: int) -> Conversation:
    """Return the conversation up to turn `index`: the same one, or a new one if turns follow."""
    if index == len(conversation.turns) - 1:
        return conversation
    return replace(conversation, turns=conversation.turns[: index + 1], id="").identified()


def undo(conversation: Conversation) -> tuple[Conversation, str]:
    """Remove the last question and its answer; return the question too, for the text box."""
    asked = retry(conversation).turns
    return replace(conversation, turns=asked[:-1]), asked[-1].content


def edit(conversation: Conversation, index: int, text: str) -> Conversation:
    """Replace user message `index` with `text`, and remove everything after it."""
    if not 0 <= index < len(conversation.turns) or conversation.turns[index].role != "user":
        raise StudioError("There is no such message. Reload the page.")
    return append_user(replace(conversation, turns=conversation.turns[:index]), text)


def to_json(conversation: Conversation) -> str:
    """Return JSON for browser storage. If it is too long, the oldest answers lose their token ids."""
    named = {"id": conversation.id, "title": conversation.title, "raw": conversation.raw}
    document = named | {"system": conversation.system}
    turns = [asdict(turn) for turn in conversation.turns]
    for turn in [*turns, None]:
        stored = json.dumps(document | {"turns": turns}, ensure_ascii=False)
        if len(stored) <= MAX_STORED or turn is None:
            break
        for part in (turn, turn["base"], *turn["others"]):
            if part and part["answer"]:
                part["answer"]["token_ids"] = ()
    if len(stored) > MAX_STORED:
        raise StudioError("This conversation is too long for the browser's storage. Export it and start a new one.")
    return stored


def several_to_json(conversations: list[Conversation]) -> str:
    """Return JSON for the browser to store all of them and open the first."""
    return json.dumps({"several": [to_json(each) for each in conversations]}, ensure_ascii=False)


def from_json(stored: Any) -> Conversation:
    """Return the conversation written by `to_json`.

    Raises:
        StudioError: `stored` is not a valid conversation.
    """
    if stored in (None, ""):
        return Conversation()
    try:
        return parse(json.loads(stored))
    except (ValueError, TypeError, RecursionError) as error:
        raise StudioError("The conversation is not valid JSON. Choose a file exported from this page.") from error


def parse(data: Any) -> Conversation:
    """Return a conversation from decoded JSON, after checking every field."""
    if not isinstance(data, dict) or not isinstance(data.get("turns"), list):
        raise StudioError("This is not a conversation: it has no list of turns. Choose a file exported from this page.")
    if len(data["turns"]) > MAX_TURNS:
        raise StudioError(f"The conversation has {len(data['turns'])} messages, but at most {MAX_TURNS} can be opened.")
    turns = tuple(_turn(turn, number) for number, turn in enumerate(data["turns"], start=1))
    stored_id, title = data.get("id"), checked_text(data.get("title", ""), "title")[:MAX_TITLE]
    known = stored_id if isinstance(stored_id, str) and _ID.fullmatch(stored_id) else ""
    raw = data.get("raw") if isinstance(data.get("raw"), bool) else None
    return Conversation(checked_text(data.get("system", ""), "system prompt"), turns, known, title, raw)


def _turn(data: Any, number: int) -> Turn:
    expected: Literal["user", "assistant"] = "user" if number % 2 else "assistant"
    if not isinstance(data, dict) or data.get("role") != expected:
        raise StudioError(f"Message {number} of the conversation must have the role {expected!r}.")
    content = checked_text(data.get("content"), f"content of message {number}")
    if expected == "user":
        return Turn(expected, content)
    others = _typed(data, "others", list, [], number)[:MAX_VARIANTS]
    variants = tuple(_turn({**_object(other, number), "others": []}, number) for other in others)
    place = _typed(data, "number", int, len(variants), number)
    answer, base = _answer(data.get("answer"), number), _reply(data.get("base"), number)
    return Turn(expected, content, answer, base, variants, min(max(place, 0), len(variants)))


def _object(data: Any, number: int) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise StudioError(f"The variants of message {number} of the conversation must be objects.")
    return data


def _reply(data: Any, number: int) -> Reply | None:
    if data is None:
        return None
    if not isinstance(data, dict):
        raise StudioError(f"The base model's reply in message {number} of the conversation must be an object.")
    content = checked_text(data.get("content"), f"base model's content of message {number}")
    return Reply(content, _answer(data.get("answer"), number))


def _answer(data: Any, number: int) -> Answer:
    data = data if isinstance(data, dict) else {}
    trace_id = _typed(data, "trace_id", str, "", number)
    notices = _typed(data, "notices", list, [], number)
    token_ids = _typed(data, "token_ids", list, [], number)
    if not all(type(token) is int and 0 <= token < 2**31 for token in token_ids):
        raise StudioError(f"The token_ids of message {number} must be non-negative integers.")
    prompt_tokens = _typed(data, "prompt_tokens", int, 0, number)
    if not 0 <= prompt_tokens <= max(len(token_ids), prompt_tokens if not token_ids else 0):
        raise StudioError(f"Message {number} has more prompt_tokens than token_ids.")
    return Answer(
        model_id=_typed(data, "model_id", str, "", number)[:200],
        trace_id=trace_id if _ID.fullmatch(trace_id) else "",
        token_ids=tuple(token_ids),
        prompt_tokens=prompt_tokens,
        ttft_s=_number(data, "ttft_s", number),
        decode_tok_s=_number(data, "decode_tok_s", number),
        context_size=_typed(data, "context_size", int, 0, number),
        finish=_typed(data, "finish", str, "", number)[:20],
        notices=tuple(checked_text(notice, f"notice of message {number}")[:500] for notice in notices[:10]),
        adapter=_typed(data, "adapter", str, "", number)[:200],
        adapter_title=checked_text(data.get("adapter_title", ""), f"adapter_title of message {number}")[:200],
    )


def _typed(data: dict[str, Any], name: str, kind: type, default: Any, number: int) -> Any:
    value = data.get(name, default)
    if type(value) is not kind:
        raise StudioError(f"{name} of message {number} must be {kind.__name__}, not {type(value).__name__}.")
    return value


def _number(data: dict[str, Any], name: str, number: int) -> float:
    value = data.get(name, 0.0)
    if type(value) not in (int, float) or not 0 <= value < 1e9:  # also rejects NaN
        raise StudioError(f"{name} of message {number} must be a number, not {value!r:.40}.")
    return float(value)


def _ends_with_answer(conversation: Conversation) -> bool:
    return bool(conversation.turns) and conversation.turns[-1].role == "assistant"
