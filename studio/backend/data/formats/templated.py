"""Text that already holds a chat template, such as `<|im_start|>user\\nHi<|im_end|>`: it is read as messages."""

from __future__ import annotations

import re

from studio.backend.data.formats import Cells, Format, Messages, needed_text
from studio.backend.data.row import Problem
from studio.backend.data.turns import conversation

EDGE = r"(?:<s>|</s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>|\s)*+"
TEMPLATES = [
    re.compile(rf"{EDGE}{template}", re.S)
    for template in (
        r"<\|im_start\|>(?P<role>\w+)\n(?P<content>.*?)(?:<\|im_end\|>|\Z)",
        r"<\|start_header_id\|>(?P<role>\w+)<\|end_header_id\|>\n*(?P<content>.*?)(?:<\|eot_id\|>|\Z)",
        r"<start_of_turn>(?P<role>\w+)\n(?P<content>.*?)(?:<end_of_turn>|\Z)",
        r"<\|(?P<role>system|user|assistant)\|>\n?(?P<content>.*?)(?:</s>|<\|end\|>|(?=<\|(?:user|assistant)\|>)|\Z)",
        r"\[INST\](?:\s*<<SYS>>(?P<system>.*?)<</SYS>>)?+(?P<user>.*?)\[/INST\](?P<answer>.*?)(?=</s>|<s>|\Z)",
    )
]
"""Blanks beside a lazy group are part of it and stripped later: `\\s*.*?` would try each way to divide them."""
NOTICE = (
    "The rows hold the control tokens of a chat template. They were read as messages, which get the model's own one."
)


def messages(cells: Cells) -> Messages:
    text = needed_text(cells, "text")
    found = template_turns(text)
    if not found:
        raise Problem("text", f"holds no chat template: {text[:60]!r}", "Choose the format text to train it as it is.")
    return conversation(found, "text")


def template_turns(text: str) -> list[Cells]:
    """Return the turns if they are the whole text, else []."""
    for template in TEMPLATES:
        at, found = 0, []
        while match := template.match(text, at):
            at = match.end()
            found += _of(match.groupdict())
        if found and re.fullmatch(EDGE, text[at:]):
            return found
    return []


def _of(groups: dict[str, str | None]) -> list[Cells]:
    if "role" in groups:
        content = (groups["content"] or "").strip()
        return [{"role": groups["role"], "content": content}] if content or groups["role"] != "assistant" else []
    turns = zip(("system", "user", "assistant"), (groups["system"], groups["user"], groups["answer"]), strict=True)
    return [{"role": role, "content": text.strip()} for role, text in turns if text and text.strip()]


FORMAT = Format(
    name="templated",
    order=45,
    help="text: rows that hold a chat template, such as <|im_start|>user",
    fields={"text": ("text", "content", "prompt", "conversation")},
    messages=messages,
    fits=lambda cells: isinstance(cells["text"], str) and bool(template_turns(cells["text"])),
    explains=False,
    notice=f"{NOTICE} Choose the format text to train them as they are.",
)
