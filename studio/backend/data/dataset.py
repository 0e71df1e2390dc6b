"""Read a file of rows into a checked data set: each example as messages, each bad row with a remedy.

    dataset = read("devils-dictionary")                        # a bundled sample, or the path of a file
    dataset = read("my.csv", DataSettings(columns={"prompt": "Frage", "completion": "Antwort"}))
    train, held_out = dataset.split(eval_share=0.1, seed=0)    # duplicates never end up on both sides
    dataset = read("my.csv", first=2500)                       # for a preview: the first rows, and an estimate of all

`formats/` holds one module per format; `rows.py` reads the file types; `stored.py` keeps large data sets on disk.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from studio.backend.data import hub_dataset, stored, uploads
from studio.backend.data.detection import Wanted, first_of, formats, names_of, no_good_row
from studio.backend.data.encodings import NAMES
from studio.backend.data.examples import Examples, group_numbers, write_examples
from studio.backend.data.reading import Reading, probe
from studio.backend.data.rows import BadRow, Limits, Row, Rows
from studio.backend.hosting import demo
from studio.backend.recipe import Recipe
from studio.backend.settings import Settings, settings
from studio.backend.system.files import sha256
from studio.errors import StudioError

SAMPLES = {path.stem.replace("_", "-"): path for path in sorted(Path(__file__).with_name("samples").glob("*.jsonl"))}
IN_PLACE = Limits(file_bytes=2**40, rows=2**31)
"""Limits on a file that a person named by its path, which a page does not allow."""
UNEVEN = 2
"""Ratio of the held-out share to the one that was asked for, or the reverse, above which a notice says so."""


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
    task: str = "chat"
    """The training task; only its formats are considered."""
    encoding: str = "auto"
    """One of `encodings.NAMES`, or auto to detect it."""
    in_place: bool = False
    """Whether the file may have any size, because a person named its path."""

    @property
    def limits(self) -> Limits:
        if shared := demo.limits():
            return Limits(rows=shared.rows + 1)  # one more tells that there are too many
        return IN_PLACE if self.in_place else Limits()

    @classmethod
    def conflicts(cls, values: Mapping[str, Any], wrong: set[str]) -> list[str]:
        known = {"format": [each.name for each in formats(values["task"])], "encoding": [*NAMES]}
        return [
            f"{name} must be one of auto, {', '.join(names)}, not {values[name]!r}"
            for name, names in known.items()
            if name not in wrong and values[name] not in ("auto", *names)
        ]


@dataclass(frozen=True)
class Dataset:
    path: Path
    fingerprint: str
    """SHA-256 of the file, which a resumed run compares to detect changes; empty if only the first rows were read."""
    format: str
    columns: dict[str, str]
    """The column of each field of the format."""
    examples: Examples
    bad_rows: list[BadRow]
    notices: tuple[str, ...]
    """Other assumptions about the file."""
    total: int
    """Rows of the file; an estimate if only the first ones were read."""
    warnings: tuple[str, ...] = ()
    """What the reading assumes and leaves out, which changes what is trained."""

    @property
    def is_part(self) -> bool:
        """Whether only the first rows were read."""
        return not self.fingerprint

    @property
    def duplicates(self) -> int:
        """Examples that repeat an earlier one, ignoring case and whitespace. They are kept."""
        return len(self.examples) - len(np.unique(self.examples.contents))

    def without(self, bad_rows: Mapping[int, BadRow], on_bad_rows: str) -> Dataset:
        """Return the data set without examples that turned out to be bad rows, by their index.

        Raises:
            StudioError: there are some, and `on_bad_rows` is stop.
        """
        if not bad_rows:
            return self
        examples = self.examples.where([i not in bad_rows for i in range(len(self.examples))])
        every = sorted([*self.bad_rows, *bad_rows.values()], key=lambda bad: bad.line)
        check_rows(self.path, len(examples), every, on_bad_rows)
        return replace(self, examples=examples, bad_rows=every)

    def split(self, eval_share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices of the (training, held-out) examples; the same seed gives the same split.

        Examples with the same prompt stay together. If all have the same prompt, nothing is held out.

        Raises:
            StudioError: `eval_share` is below 0, or 1 or more.
        """
        if not 0 <= eval_share < 1:
            raise StudioError(f"eval_share must be at least 0 and below 1, not {eval_share!r}.")
        groups = group_numbers(self.examples.prompts)  # [examples]
        is_held_out = _drawn(np.bincount(groups), eval_share, seed)[groups]
        return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


TOGETHER = "rows with the same prompt or text stay on one side"


def split_notice(asked: float, held_out: int, total: int, reason: str = f"{TOGETHER}, and all have the same") -> str:
    """Return a sentence if the held-out share is not the one that was asked for, else an empty text.

    Args:
        reason: why nothing is held out.
    """
    got = held_out / max(total, 1)
    if not asked or total == 0:
        return ""
    if not held_out:
        return (
            f"Nothing is held out, because {reason}. The run has no held-out loss, keeps the last checkpoint instead "
            "of the best one, and does not stop early."
        )
    if max(got, asked) <= UNEVEN * min(got, asked) or abs(held_out - asked * total) < 2:
        return ""
    return f"{held_out:,} of {total:,} rows ({got:.0%}) are held out instead of {asked:.0%}, because {TOGETHER}."


def read(name_or_path: str | Path, settings: DataSettings | None = None, first: int = 0) -> Dataset:
    """Read the data set from a file or a bundled sample.

    Args:
        first: stop after about so many rows, or after `FIRST_CHARACTERS`; 0 reads all.

    Raises:
        StudioError: the file is missing or unreadable, no format fits, no row is good, or a row is bad and
            `on_bad_rows` is stop.
    """
    settings = settings or DataSettings()
    path = resolve(name_or_path)
    if first:
        return _read(path, settings, first)
    fingerprint = sha256(path)
    if path.stat().st_size <= stored.LARGE:
        return _read(path, settings, 0, fingerprint)
    key = f"{fingerprint} {path.name!r} {settings!r}"  # the type depends on the extension, and notices on the name
    if found := stored.find(key):
        examples, about = found
        about["bad_rows"] = [BadRow(*bad) for bad in about["bad_rows"]]
        about |= {name: tuple(about[name]) for name in ("notices", "warnings")}
        return Dataset(path, examples=examples, **about)
    with stored.part() as file:
        dataset = _read(path, settings, 0, fingerprint, file)
        names = ("fingerprint", "format", "columns", "notices", "warnings", "total")
        about = {name: getattr(dataset, name) for name in names}
        stored.keep(key, file, about | {"bad_rows": [*map(astuple, dataset.bad_rows)]})
    return dataset


def _read(path: Path, settings: DataSettings, first: int, fingerprint: str = "", file: Path | None = None) -> Dataset:
    """Read a file; the examples are written to `file`, if it is given."""
    wanted = Wanted(settings.format, settings.columns, settings.task)
    reading = Reading(Rows(path, settings.limits, settings.encoding), wanted, first)
    if file is not None:
        write_examples(reading.examples(), file)
    examples = Examples.of(reading.examples()) if file is None else Examples.open(file)
    check_rows(path, len(examples), reading.bad_rows, settings.on_bad_rows)
    if first and reading.is_complete:
        fingerprint = sha256(path)
    return Dataset(
        path,
        fingerprint,
        reading.detected.format.name,
        reading.detected.columns,
        examples,
        reading.bad_rows,
        tuple(reading.notices()),
        reading.total(),
        tuple(reading.warnings()),
    )


def check_rows(path: Path, good: int, bad_rows: list[BadRow], on_bad_rows: str) -> None:
    """Raise StudioError if there is no good row, or if there is a bad one and `on_bad_rows` is stop."""
    if not good:
        raise no_good_row(path, bad_rows)
    if bad_rows and on_bad_rows == "stop":
        raise StudioError(
            f"{path.name} has {len(bad_rows):,} bad rows, and on_bad_rows is stop. Correct them, or set it to skip.\n"
            f"{first_of(bad_rows)}"
        )


def first_rows(name_or_path: str | Path, settings: DataSettings | None = None) -> list[dict[str, Any]]:
    """Return the cells of the first good rows.

    Raises:
        StudioError: the file is missing or unreadable, or no row is good.
    """
    settings, path = settings or DataSettings(), resolve(name_or_path)
    probed = probe(iter(Rows(path, settings.limits, settings.encoding)))
    names_of(path, probed)
    return [row.cells for row in probed if isinstance(row, Row)]


def column_names(name_or_path: str | Path, settings: DataSettings | None = None) -> list[str]:
    """Return the column names of the first rows, in order. Raises as `first_rows`."""
    return list(dict.fromkeys(chain(*first_rows(name_or_path, settings))))


def resolve(name_or_path: str | Path) -> Path:
    """Return the path of a bundled sample, of a downloaded data set of the Hugging Face Hub, or of a file.

    Raises:
        StudioError: neither exists.
    """
    if str(name_or_path) in SAMPLES:
        return SAMPLES[str(name_or_path)]
    if hub_dataset.is_reference(name_or_path):
        return hub_dataset.fetch(str(name_or_path))
    given, problem = str(name_or_path), "There is no file"
    with suppress(OSError):  # the name is too long for the file system
        if Path(given).is_file():
            return Path(given)
        if Path(given).is_dir():
            problem = "A folder can't be read:"
    problem = f"{problem} {given[:200]!r}." if given else "No data is given."
    raise StudioError(f"{problem} Give the path of a file, or a sample: {', '.join(SAMPLES)}.")


def settings_of(recipe: Recipe) -> DataSettings:
    """Return the recipe's settings for reading its file. Raises as `DataSettings`."""
    in_place = not (hub_dataset.is_reference(recipe.data) or uploads.holds(recipe.data))
    return DataSettings(recipe.format, recipe.columns, recipe.on_bad_rows, recipe.task, recipe.encoding, in_place)


def _drawn(sizes: np.ndarray, eval_share: float, seed: int) -> np.ndarray:
    """Hold out whole groups, about `eval_share` of the rows; if none is small enough, the smallest group.

    Args:
        sizes: rows of each group, `[groups]`.

    Returns:
        Whether each group is held out, `[groups]`.
    """
    drawn = np.zeros(len(sizes), bool)
    count = int(sizes.sum())
    if not eval_share or len(sizes) < 2:
        return drawn
    left = min(max(1, round(eval_share * count)), count - 1)
    order = list(range(len(sizes)))
    random.Random(seed).shuffle(order)
    for group in order:
        if sizes[group] <= left:
            drawn[group] = True
            left -= sizes[group]
    if not drawn.any():
        drawn[min(order, key=lambda group: sizes[group])] = True
    return drawn
