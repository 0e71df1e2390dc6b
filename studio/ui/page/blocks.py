"""`gr.Blocks` in which skipped outputs cost nothing, and whose queue has a share for everybody."""

from __future__ import annotations

import copy
import logging
from typing import Any

import gradio as gr

from studio.ui.server.fair_queue import FairQueue
from studio.ui.server.log_lines import safe

logger = logging.getLogger(__name__)
LONGEST_ERROR, HALF = 400, 200
"""Characters of an error about an input, which may hold all of the input."""


class Blocks(gr.Blocks):
    """`gr.Blocks` that leaves skipped outputs alone.

    Gradio rebuilds every skipped component and its schema. A chat update skips seven of eleven outputs, which took six
    sevenths of the event loop's time for the update.
    """

    def queue(self, *args: Any, **options: Any) -> Blocks:
        """Set the queue's options, like `gr.Blocks`."""
        super().queue(*args, **options)
        self._queue = FairQueue.of(self)
        return self

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False) -> Any:
        """Return what the handler gets, like `gr.Blocks`. Gradio prints a bad value in full, line breaks included."""
        try:
            return await super().preprocess_data(block_fn, inputs, state, explicit_call)
        except Exception as error:
            text = str(error)
            cut = text if len(text) <= LONGEST_ERROR else f"{text[:HALF]} … {text[-HALF:]}"
            sentence = safe(cut)
            logger.info("the inputs of an event were refused: %s", sentence)
            raise gr.Error(sentence, print_exception=False) from None

    async def postprocess_data(self, block_fn: Any, predictions: Any, state: Any) -> list[Any]:
        """Return the value for each output, like `gr.Blocks`."""
        outputs = list(block_fn.outputs)
        if not isinstance(predictions, list | tuple) or len(predictions) != len(outputs) or len(outputs) == 1:
            return await super().postprocess_data(block_fn, predictions, state)
        given = [
            number for number, (output, value) in enumerate(zip(outputs, predictions, strict=True))
            if output.stateful or not (isinstance(value, dict) and value == gr.skip())
        ]  # fmt: skip
        answer: list[Any] = [gr.skip() for _ in outputs]
        if given:
            few = copy.copy(block_fn)
            few.outputs = [outputs[number] for number in given]
            values = [predictions[number] for number in given]
            answers = await super().postprocess_data(few, values if len(given) > 1 else values[0], state)
            for number, value in zip(given, answers, strict=True):
                answer[number] = value
        return answer
