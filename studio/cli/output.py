"""Options and the progress bar that the commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

Precision = Annotated[
    str, typer.Option(help="nf4 (4-bit), bf16, fp32 or auto: 4-bit on a GPU, the model's default on a CPU.")
]
Model = Annotated[str, typer.Option(help="Model id from `python -m studio models`.")]
Adapter = Annotated[str | None, typer.Option(help="Adapter: a run's id, or the folder of a PEFT adapter.")]


@contextmanager
def progress_bar() -> Iterator[Callable[[float, str], None]]:
    """Show a progress bar on stderr if it is a terminal."""
    from tqdm import tqdm

    with tqdm(total=100, bar_format="{l_bar}{bar}| {n:.0f} %", leave=False, disable=None) as bar:

        def progress(fraction: float, text: str) -> None:
            bar.set_description_str(text, refresh=False)
            bar.n = 100 * fraction
            bar.refresh()

        yield progress
