"""A prompt and its completion, under any of the common column names."""

from __future__ import annotations

from studio.backend.data.formats import Cells, Format, Messages, answered, needed_text, optional_text


def messages(cells: Cells) -> Messages:
    system = optional_text(cells, "system")
    return answered(system, needed_text(cells, "prompt"), needed_text(cells, "completion"))


FORMAT = Format(
    name="prompt_completion",
    order=40,
    help="prompt and completion, also question and answer, or input and output",
    fields={
        "prompt": ("prompt", "question", "query", "input"),
        "completion": ("completion", "response", "answer", "output"),
    },
    optional={"system": ("system",)},
    messages=messages,
)
