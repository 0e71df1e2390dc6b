"""Messages for `gr.Chatbot`, and the statistics below an answer."""

from __future__ import annotations

from html import escape
from typing import Any

from studio.ui.chat.answering import Draft
from studio.ui.chat.conversation import Answer, Conversation, Turn
from studio.ui.common.markdown import as_markdown, closed

FINISHES = {"cancelled": "stopped"}


def chat_messages(conversation: Conversation) -> list[dict[str, Any]]:
    """Return one message per turn, so that message and turn indexes match."""
    return [_message(turn) for turn in conversation.turns]


def pending_message(draft: Draft) -> dict[str, Any]:
    """Return the message for an answer in progress."""
    if draft.text or not draft.waiting:
        return _message(Turn("assistant", draft.text or "…", draft.answer))
    return _message(Turn("assistant", f"*{draft.waiting}*", draft.answer))


def heading(title: str) -> str:
    """Return the HTML heading of one side of a comparison."""
    return f"<h2>{escape(title)}</h2>"


def statistics(answer: Answer) -> str:
    """Return HTML with the engine's measurements."""
    if not answer.context_size:
        return ""
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
    text = as_markdown(turn.content)
    if turn.answer and turn.answer.notices:
        text = "\n\n".join([closed(text), *(f"*Note: {as_markdown(notice)}*" for notice in turn.answer.notices)])
    # A dict, because Gradio strips the indentation of plain strings.
    return {"role": turn.role, "content": [{"type": "text", "text": text}]}
