"""Alpaca rows: an instruction, an optional input and the output."""

from __future__ import annotations

from studio.backend.data.formats import Cells, Format, Messages, answered, needed_text, optional_text


def messages(cells: Cells) -> Messages:
    prompt = "\n\n".join(filter(None, (needed_text(cells, "instruction"), optional_text(cells, "input"))))
    return answered(optional_text(cells, "system"), prompt, needed_text(cells, "output"))


FORMAT = Format(
    name="alpaca",
    order=30,
    help="instruction, output and an optional input",
    fields={"instruction": ("instruction",), "output": ("output", "response")},
    optional={"input": ("input", "context"), "system": ("system",)},
    messages=messages,
)
