"""Read a file of rows into a checked data set: each example as messages, each bad row with a remedy.

    dataset = read("devils-dictionary")                        # a bundled sample, or the path of a file
    dataset = read("my.csv", DataSettings(columns={"prompt": "Frage", "completion": "Antwort"}))
    train, held_out = dataset.split(eval_share=0.1, seed=0)    # duplicates never end up on both sides

`formats/` holds one module per format; `rows.py` reads the file types.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from studio.backend.data import hub_dataset
from studio.backend.data.formats import Format, Messages
from studio.backend.data.rows import BadRow, Limits, Problem, Row, Rows
from studio.backend.recipe import Recipe
from studio.backend.settings import Settings, settings
from studio.backend.system.files import sha256
from studio.errors import StudioError
from studio.registry import discover

SAMPLES = {path.stem.replace("_", "-"): path for path in sorted(Path(__file__).with_name("samples").glob("*.jsonl"))}
SHOWN_BAD_ROWS = 20
PROBED_ROWS = 50
"""Good rows that are used to detect the format."""


@settings
class DataSettings(Settings):
    """Settings for reading a file.

    Raises:
        StudioError: invalid values; the message lists all of them.
    """

    format: str = "auto"
    """The name of a format, or auto to detect it from the columns."""
    columns: dict[str, str] = Field(
        default_factory=dict,
        json_schema_extra={"expected": "a column's name for each field, as in {prompt: Question}"},
    )
    """The column of each field, for columns whose names are not recognized."""
    on_bad_rows: Literal["skip", "stop"] = "skip"
    """skip leaves bad rows out and lists them; stop raises with the list."""
    limits: Limits = Field(default_factory=Limits)
    """Limits on what is read."""
    task: str = "chat"
    """The training task; only its formats are considered."""

    @classmethod
    def conflicts(cls, values: Mapping[str, Any], wrong: set[str]) -> list[str]:
        names = ["auto", *(each.name for each in formats(values["task"]))]
        if "format" in wrong or values["format"] in names:
            return []
        return [f"format must be one of {', '.join(names)}, not {values['format']!r}"]


@dataclass(frozen=True)
class Example:
    line: int
    messages: Messages
    labels: tuple[str, ...] = ()
    """As written in the file; only for labelled texts."""


@dataclass(frozen=True)
class Dataset:
    path: Path
    fingerprint: str
    """SHA-256 of the file, which a resumed run compares to detect changes."""
    format: str
    columns: dict[str, str]
    """The column of each field of the format."""
    examples: list[Example]
    bad_rows: list[BadRow]
    notices: tuple[str, ...]
    duplicates: int
    """Examples that repeat an earlier one, ignoring case and whitespace. They are kept."""

    def split(self, eval_share: float, seed: int) -> tuple[list[Example], list[Example]]:
        """Return the (training, held-out) examples; the same seed gives the same split.

        Examples with the same prompt stay together. If all have the same prompt, nothing is held out.

        Raises:
            StudioError: `eval_share` is below 0, or 1 or more.
        """
        if not 0 <= eval_share < 1:
            raise StudioError(f"eval_share must be at least 0 and below 1, not {eval_share!r}.")
        groups: dict[bytes, list[int]] = {}
        for i, example in enumerate(self.examples):
            groups.setdefault(digest(_prompt(example.messages)), []).append(i)
        held_out = _drawn(list(groups.values()), eval_share, seed)
        train = [example for i, example in enumerate(self.examples) if i not in held_out]
        return train, [self.examples[i] for i in sorted(held_out)]


def read(name_or_path: str | Path, settings: DataSettings | None = None) -> Dataset:
    """Read the data set from a file or a bundled sample.

    Raises:
        StudioError: the file is missing or unreadable, no format fits, no row is good, or a row is bad and
            `on_bad_rows` is stop.
    """
    settings = settings or DataSettings()
    path = resolve(name_or_path)
    rows = Rows(path, settings.limits)
    stream = iter(rows)
    probed = _probe(stream)
    format, columns, notices = _detect(path, probed, settings)
    examples, bad_rows = _convert(chain(probed, stream), format, columns)
    check_rows(path, examples, bad_rows, settings.on_bad_rows)
    notices += tuple(rows.notices)
    return Dataset(path, sha256(path), format.name, columns, examples, bad_rows, notices, _duplicates(examples))


def check_rows(path: Path, examples: list[Example], bad_rows: list[BadRow], on_bad_rows: str) -> None:
    """Raise StudioError if there is no good row, or if there is a bad one and `on_bad_rows` is stop."""
    if not examples:
        raise _no_good_row(path, bad_rows)
    if bad_rows and on_bad_rows == "stop":
        raise StudioError(
            f"{path.name} has {len(bad_rows):,} bad rows, and on_bad_rows is stop. Correct them, or set it to skip.\n"
            f"{_first(bad_rows)}"
        )


def column_names(name_or_path: str | Path) -> list[str]:
    """Return the column names of the first rows, in order.

    Raises:
        StudioError: the file is missing or unreadable, or no row is good.
    """
    path = resolve(name_or_path)
    return _names(path, _probe(iter(Rows(path, Limits()))))


def resolve(name_or_path: str | Path) -> Path:
    """Return the path of a bundled sample, of a downloaded data set of the Hugging Face Hub, or of a file.

    Raises:
        StudioError: neither exists.
    """
    if str(name_or_path) in SAMPLES:
        return SAMPLES[str(name_or_path)]
    if hub_dataset.is_reference(name_or_path):
        return hub_dataset.fetch(str(name_or_path))
    path = Path(name_or_path)
    with suppress(OSError):  # the name is too long for the file system
        if path.is_file():
            return path
    raise StudioError(f"There is no file {str(path)[:200]!r}. Give its path, or a sample: {', '.join(SAMPLES)}.")


def formats(task: str | None = None) -> list[Format]:
    """Return all formats, or those of a task."""
    return [each for each in discover("studio.backend.data.formats", "FORMAT") if task in (None, each.task)]


def settings_of(recipe: Recipe) -> DataSettings:
    """Return the recipe's settings for reading its file. Raises as `DataSettings`."""
    return DataSettings(recipe.format, recipe.columns, recipe.on_bad_rows, task=recipe.task)


def _probe(stream: Iterator[Row | BadRow]) -> list[Row | BadRow]:
    rows: list[Row | BadRow] = []
    good = 0
    for row in stream:
        rows.append(row)
        good += isinstance(row, Row)
        if good == PROBED_ROWS:
            break
    return rows


def _detect(
    path: Path, probed: list[Row | BadRow], settings: DataSettings
) -> tuple[Format, dict[str, str], tuple[str, ...]]:
    """Return (format, column of each field, notices).

    Raises:
        StudioError: no format fits, or no row is good.
    """
    names = _names(path, probed)
    rows = [row.cells for row in probed if isinstance(row, Row)]
    if missing := [name for name in settings.columns.values() if name not in names]:
        raise StudioError(f"{path.name} has no column {_listed(missing)}. Choose from {_listed(names)}.")
    for format in formats(settings.task):
        columns = format.locate(names, settings.columns) if settings.format in ("auto", format.name) else None
        if columns and (settings.format != "auto" or any(format.fits(format.cells(row, columns)) for row in rows)):
            unused = [name for name in names if name not in columns.values()]
            return format, columns, (f"Unused columns: {_listed(unused)}.",) if unused else ()
    raise _no_format(path, names, settings)


def _names(path: Path, probed: list[Row | BadRow]) -> list[str]:
    rows = [row.cells for row in probed if isinstance(row, Row)]
    if not rows:
        raise _no_good_row(path, [row for row in probed if isinstance(row, BadRow)])
    return list(dict.fromkeys(chain(*rows)))


def _no_format(path: Path, names: list[str], settings: DataSettings) -> StudioError:
    known = [f"{each.name} ({each.help})" for each in formats(settings.task) if settings.format in ("auto", each.name)]
    such = "{text: Review, label: Stars}" if settings.task == "classify" else "{prompt: Question, completion: Answer}"
    return StudioError(
        f"The columns of {path.name} ({_listed(names)}) don't match {' or '.join(known)}. Rename them, or map fields "
        f"to columns with `columns`, as in {such}."
    )


def _listed(names: list[str]) -> str:
    shown = [repr(name[:40]) for name in names[:12]]
    return ", ".join(shown) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _convert(
    rows: Iterable[Row | BadRow], format: Format, columns: dict[str, str]
) -> tuple[list[Example], list[BadRow]]:
    examples, bad_rows = [], []
    for row in rows:
        if isinstance(row, BadRow):
            bad_rows.append(row)
            continue
        try:
            messages = format.convert(row.cells, columns)
            examples.append(Example(row.line, messages, format.labels_of(row.cells, columns)))
        except Problem as problem:
            bad_rows.append(BadRow(row.line, *problem.args))
    return examples, bad_rows


def _no_good_row(path: Path, bad_rows: list[BadRow]) -> StudioError:
    return StudioError(f"{path.name} has no good row.\n{_first(bad_rows)}")


def _first(bad_rows: list[BadRow]) -> str:
    left = len(bad_rows) - SHOWN_BAD_ROWS
    return "\n".join([*map(str, bad_rows[:SHOWN_BAD_ROWS]), *([f"... and {left:,} more"] if left > 0 else [])])


def _duplicates(examples: list[Example]) -> int:
    return len(examples) - len({digest(example.messages) for example in examples})


def _prompt(messages: Messages) -> Messages:
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def digest(messages: Messages) -> bytes:
    """Return a hash of the messages that ignores case and whitespace."""
    said = [(message["role"], " ".join(message["content"].split()).casefold()) for message in messages]
    return hashlib.sha256(json.dumps(said).encode()).digest()


def _drawn(groups: list[list[int]], eval_share: float, seed: int) -> set[int]:
    """Hold out whole groups, about `eval_share` of the rows; if none is small enough, the smallest group."""
    count = sum(map(len, groups))
    if not eval_share or len(groups) < 2:
        return set()
    wanted = min(max(1, round(eval_share * count)), count - 1)
    random.Random(seed).shuffle(groups)
    drawn: set[int] = set()
    for group in groups:
        if len(drawn) + len(group) <= wanted:
            drawn.update(group)
    return drawn or set(sorted(groups, key=len)[0])
