"""Options, tables and the progress bar that the commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer

WHOLE_LINES = 10_000
Precision = Annotated[
    str, typer.Option(help="nf4 (4-bit), bf16, fp32 or auto: 4-bit on a GPU, the model's default on a CPU.")
]
Model = Annotated[
    str, typer.Option(help="Model id from `python -m studio models`, a folder, or OWNER/NAME on the Hub.")
]
Adapter = Annotated[str | None, typer.Option(help="Adapter: a run's id, or the folder of a PEFT adapter.")]


def print_table(rows: Sequence[Sequence[str]], header: bool = True) -> None:
    """Print rows as columns; the first row is the header unless `header` is False."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=header)
    for name in rows[0]:
        table.add_column(Text(name), no_wrap=True)  # Text, because names of runs may hold rich's markup
    for row in rows[header:]:
        table.add_row(*map(Text, row))
    if sys.stdout.isatty():
        Console(highlight=False).print(table)
        return
    # A file or a pipe gets whole lines, without the padding of the last column.
    console = Console(highlight=False, width=WHOLE_LINES)
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


@contextmanager
def progress_bar() -> Iterator[Callable[[float, str], None]]:
    """Show a progress bar on stderr if it is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda fraction, text: bar.update(task, completed=fraction, description=text)
