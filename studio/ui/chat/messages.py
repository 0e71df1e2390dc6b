"""Messages for `gr.Chatbot`, and the statistics below an answer."""

from __future__ import annotations

from html import escape
from typing import Any

from studio.backend.chat.zero_engine import quota_s
from studio.backend.models.catalog import STARTER
from studio.ui.chat.answering import Draft
from studio.ui.chat.conversation import EDITED, Answer, Conversation, Turn
from studio.ui.common.markdown import as_markdown, as_text, closed, verbatim, verbatim_text

FINISHES = {"cancelled": "stopped", EDITED: "edited"}
WELCOME = "### Ask a question\nThe answer appears here, and the experts behind each token in the routing panel."
SMALL = (
    "The starter is a small model, for trying and tuning: it makes mistakes that large models don't make. Tune it "
    "under “Fine-tune”, or load another model above the chat."
)
UNFINISHED = ("length", *FINISHES)


def welcome(model_id: str | None) -> str:
    """Return what an empty chat shows, as markdown."""
    return f"{WELCOME}\n\n{SMALL}" if model_id == STARTER.id else WELCOME


def chat_messages(conversation: Conversation) -> list[dict[str, Any]]:
    """Return one message per turn, so that message and turn indexes match."""
    return [_message(turn) for turn in conversation.turns]


def with_options(conversation: Conversation) -> list[dict[str, Any]]:
    """Return `chat_messages`, with what can be done with the last answer: continue it, or show another variant."""
    messages = chat_messages(conversation)
    if messages and messages[-1]["role"] == "assistant" and (options := _options(conversation.turns[-1])):
        messages[-1]["options"] = options
    return messages


def _options(turn: Turn) -> list[dict[str, str]]:
    number, count = turn.number + 1, len(turn.others) + 1
    before = [{"value": "previous", "label": f"‹ Answer {number - 1} of {count}"}] if number > 1 else []
    after = [{"value": "next", "label": f"Answer {number + 1} of {count} ›"}] if number < count else []
    is_unfinished = turn.answer is not None and turn.answer.finish in UNFINISHED
    return [*([{"value": "continue", "label": "Continue"}] if is_unfinished else []), *before, *after]


def pending_message(draft: Draft) -> dict[str, Any]:
    """Return the message for an answer in progress."""
    if draft.text or not draft.waiting:
        return _message(Turn("assistant", draft.text or "…", draft.answer))
    return _message(Turn("assistant", f"*{draft.waiting}*", draft.answer))


def quota_note(new_tokens: float) -> str:
    """Return HTML with the time that an answer takes on a ZeroGPU Space."""
    return f"<p>An answer uses up to {quota_s(int(new_tokens)):.0f} s of your daily GPU quota.</p>"


def heading(title: str) -> str:
    """Return the HTML heading of one side of a comparison."""
    return f"<h2>{escape(title)}</h2>"


def statistics(answer: Answer) -> str:
    """Return HTML with the engine's measurements."""
    if not answer.context_size:
        return f'<div class="figures"><span>{FINISHES[EDITED]}</span></div>' if answer.finish == EDITED else ""
    used = len(answer.token_ids)
    figures = [
        (f"{answer.decode_tok_s:.1f} tokens/s", "decode speed after the first token"),
        (f"first token {answer.ttft_s:.2f} s", "time to first token, including prefill"),
        (f"{used - answer.prompt_tokens:,} tokens", "answer length"),
        (f"context {used:,} of {answer.context_size:,}", "tokens of prompt and answer, and the model's context size"),
    ]
    if answer.adapter:
        figures.insert(0, (answer.adapter_title or answer.adapter, "adapter that wrote the answer"))
    spans = [f'<span title="{escape(why)}">{escape(figure)}</span>' for figure, why in figures]
    if answer.finish in FINISHES:
        spans.append(f"<span>{FINISHES[answer.finish]}</span>")
    share = min(1, used / answer.context_size)
    meter = f'<span class="meter" aria-hidden="true"><i style="width:{100 * share:.1f}%"></i></span>'
    return f'<div class="figures">{"".join(spans)}{meter}</div>'


def _message(turn: Turn) -> dict[str, Any]:
    text = verbatim(turn.content) if turn.role == "user" else as_markdown(turn.content)
    if turn.answer and turn.answer.notices:
        text = closed(text) + _notes(turn.answer)
    # A dict, because Gradio strips the indentation of plain strings.
    return {"role": turn.role, "content": [{"type": "text", "text": text}]}


def edited_text(markdown: str, turn: Turn) -> str:
    """Return the text of a message that was edited on the page, without the notes below the answer."""
    if turn.role == "user":
        return verbatim_text(markdown)
    return as_text(markdown.removesuffix(_notes(turn.answer)) if turn.answer else markdown)


def _notes(answer: Answer) -> str:
    return "".join(f"\n\n*Note: {as_markdown(notice)}*" for notice in answer.notices)
