"""A prompt and its completion that hold a chat template together: they are read as messages."""

from __future__ import annotations

from studio.backend.data.formats import Cells, Format, Messages, needed_text
from studio.backend.data.formats.prompt_completion import FORMAT as PAIR
from studio.backend.data.formats.templated import NOTICE, template_turns
from studio.backend.data.row import Problem
from studio.backend.data.turns import conversation


def messages(cells: Cells) -> Messages:
    text = needed_text(cells, "prompt") + needed_text(cells, "completion")
    found = template_turns(text)
    if not found:
        remedy = "Choose the format prompt_completion to train it as it is."
        raise Problem("prompt", f"holds no chat template: {text[:60]!r}", remedy)
    return conversation(found, "prompt")


def fits(cells: Cells) -> bool:
    prompt, completion = cells["prompt"], cells["completion"]
    return isinstance(prompt, str) and isinstance(completion, str) and bool(template_turns(prompt + completion))


FORMAT = Format(
    name="templated_pair",
    order=35,
    help="prompt and completion that hold a chat template together, such as <|im_start|>user",
    fields=PAIR.fields,
    messages=messages,
    fits=fits,
    explains=False,
    notice=f"{NOTICE} Choose the format prompt_completion to train them as they are.",
)
