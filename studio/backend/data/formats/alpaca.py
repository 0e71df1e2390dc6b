"""Alpaca rows: an instruction, an optional input, an optional history and the output."""

from __future__ import annotations

from studio.backend.data.formats import SYSTEM, Cells, Format, Messages, needed_text, optional_text
from studio.backend.data.formats.prompt_completion import answered


def messages(cells: Cells) -> Messages:
    prompt = "\n\n".join(filter(None, (needed_text(cells, "instruction"), optional_text(cells, "input"))))
    return answered(cells, prompt, needed_text(cells, "output"))


FORMAT = Format(
    name="alpaca",
    order=30,
    help="instruction, output and an optional input",
    fields={"instruction": ("instruction",), "output": ("output", "response", "completion", "answer")},
    optional={"input": ("input", "context"), "system": SYSTEM, "history": ("history",)},
    messages=messages,
)
