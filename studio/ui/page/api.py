"""The public API: what the page does with one text, for `gradio_client`, plain HTTP and MCP clients.

    with gr.Blocks():
        add_api(engine)

    client = gradio_client.Client("me/studio")
    client.predict("Why is the sky blue?", api_name="/chat")["text"]

The same limits apply as on the page. Gradio makes the documentation of each endpoint from its signature and docstring.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.analysis.load import load, strongest
from studio.backend.chat.engine import Sampling
from studio.backend.chat.text_stream import token_texts
from studio.backend.classification.label_prompt import DEFAULT_TEMPLATE
from studio.backend.classification.zero_shot import LabelTask, ZeroShot
from studio.backend.data.prompt import encode_plain
from studio.backend.settings import defaults
from studio.errors import StudioError
from studio.ui.chat.conversation import Answer, Conversation, append_assistant, append_user, checked_text
from studio.ui.chat.sampling_form import read_sampling
from studio.ui.classify.form import split_texts
from studio.ui.common.listeners import ANSWERING, CLASSIFYING
from studio.ui.common.shown_errors import shows_errors

if TYPE_CHECKING:
    from jetmoe import RoutingTrace
    from studio.backend.chat.engine import Engine
    from studio.backend.chat.events import TokenEvent

NEW_TOKENS = 256
ROUTED_TOKENS = 2048
"""Longest text for /routing: it is read in one piece, which a disconnect does not stop."""
INTERVAL_S = 0.1
"""Seconds between two parts of a streamed answer."""


# Clients print the text of an error; nothing inserts it as HTML.
_raises_errors = partial(shows_errors, written=str)


def add_api(engine: Engine) -> None:
    """Add the three endpoints to the page that is being built."""
    api = Api(engine)
    gr.api(api.chat, api_name="chat", **ANSWERING)
    gr.api(api.classify, api_name="classify", **CLASSIFYING)
    gr.api(api.routing, api_name="routing", **CLASSIFYING)


class Api:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.zero_shot = ZeroShot(engine)

    @_raises_errors
    def chat(
        self,
        message: str,
        history: list[dict[str, str]] | None = None,
        system: str = "",
        max_new_tokens: int = NEW_TOKENS,
        temperature: float | None = None,
        seed: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Answer a message with the loaded model. The answer streams, and stops when the client leaves.

        Args:
            message: the message to answer.
            history: earlier messages, as [{"role": "user", "content": "..."}, {"role": "assistant", ...}].
            system: the system prompt.
            max_new_tokens: the most tokens to write.
            temperature: 0 always takes the likeliest token; null is the model's default.
            seed: the same seed gives the same answer.

        Returns:
            The text so far, why it ended ("stop" or "length"; "" before that), the number of new tokens, how many
            answers are ahead in the queue, the model and the notices.
        """
        conversation = append_user(_conversation(history or [], checked_text(system, "system prompt")), message)
        changed: dict[str, Any] = {"max_new_tokens": max_new_tokens, "seed": seed}
        changed |= {} if temperature is None else {"temperature": temperature}
        model = self.engine.status().defaults.sampling
        sampling = read_sampling(*(defaults(Sampling) | model | changed).values())
        answer: dict[str, Any] = {"text": "", "finish": "", "new_tokens": 0, "ahead": 0, "notices": []}
        answer["model"] = self.engine.status().model_id
        events, due_at = self.engine.generate(conversation.messages(), sampling), 0.0
        try:
            for event in events:
                _add(event, answer)
                if event.kind in ("queued", "done") or time.monotonic() >= due_at:
                    yield dict(answer)
                    due_at = time.monotonic() + INTERVAL_S
        finally:
            events.close()  # type: ignore[attr-defined]

    @_raises_errors
    def classify(self, text: str, labels: list[str], template: str = DEFAULT_TEMPLATE) -> dict[str, Any]:
        """Classify a text by labels, without training.

        Args:
            text: the text to classify.
            labels: at least two labels.
            template: "continuation", "topic", "sentiment", "message", or a prompt with {text} and optionally {labels}.

        Returns:
            The text, the label, its confidence (0 to 1) and the confidence of every label.
        """
        (checked,) = split_texts(text, one_a_line=False)
        task = LabelTask(tuple(labels) if isinstance(labels, list) else labels, template)
        (prediction,) = self.zero_shot.predict([checked], task)
        return prediction.row()

    @_raises_errors
    def routing(self, text: str) -> dict[str, Any]:
        """Route a text through the experts of the loaded model, without answering it.

        Args:
            text: a plain text; no chat template is applied.

        Returns:
            The tokens [T]; the router kinds [N]; the load of every expert [L, N, E], which sums to 1 over the experts;
            and the strongest expert of every token [L, N, T], for L layers.
        """
        text = checked_text(text, "text")
        if not text.strip():
            raise StudioError("The text is empty. Write something to route.")
        trace, texts = self._trace(text)
        return {
            "model": self.engine.status().model_id,
            "tokens": texts,
            "kinds": list(trace.kinds),
            "load": load(trace, "expert").round(5).tolist(),
            "strongest": strongest(trace, "expert").tolist(),
        }

    def _trace(self, text: str) -> tuple[RoutingTrace, list[str]]:
        with self.engine.turn() as turn:
            assert turn is not None
            ids = encode_plain(turn.tokenizer, text)
            if len(ids) > ROUTED_TOKENS:
                raise StudioError(
                    f"The text has {len(ids):,} tokens. At most {ROUTED_TOKENS:,} are routed: shorten it."
                )
            turn.decoder.prefill(ids, room=0)
            texts = token_texts(turn.tokenizer, ids)
            return turn.decoder.trace(texts, prompt_tokens=len(ids)), texts


def _add(event: TokenEvent, answer: dict[str, Any]) -> None:
    answer["ahead"] = event.place
    if event.kind == "notice":
        answer["notices"] = [*answer["notices"], event.text]
        return
    answer["text"] += event.text
    answer["finish"] = event.finish
    if event.timing is not None:
        answer["new_tokens"] = event.timing.new_tokens


def _conversation(history: Any, system: str) -> Conversation:
    """Return the earlier messages, which alternate and end with an answer.

    Raises:
        StudioError: they don't, or one of them is too long.
    """
    conversation = Conversation(system)
    if not isinstance(history, list) or len(history) % 2:
        raise StudioError("history must be a list of messages that ends with an answer of the assistant.")
    for number, message in enumerate(history, start=1):
        role = ("assistant", "user")[number % 2]
        if not isinstance(message, dict) or message.get("role") != role:
            raise StudioError(f"Message {number} of history must have the role {role!r}: they alternate.")
        text = checked_text(message.get("content"), f"message {number} of history")
        is_user = role == "user"
        conversation = append_user(conversation, text) if is_user else append_assistant(conversation, text, Answer())
    return conversation
