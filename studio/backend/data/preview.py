"""Preview a data set before training: its rows, the trained tokens and the problems.

seen = preview(Recipe(data="rows.csv"))
seen.problem           # why the file can't be used; `names` then holds the columns to choose from
seen.examples[0]       # [("<|im_start|>user\\nHi", False), ("Hello!<|im_end|>", True)]: text, whether it is trained
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from studio.backend.data.dataset import SAMPLES, Dataset, Example, column_names, formats, read, resolve, settings_of
from studio.backend.data.labelled import read_labelled, read_text, shown, summarized
from studio.backend.data.rendering import Rendered, Summary, render, summary
from studio.backend.data.rendering import preview as spans
from studio.backend.data.rows import BadRow
from studio.backend.models import catalog
from studio.backend.recipe import Recipe
from studio.errors import StudioError

# Examples whose tokens are counted. Counting more would make the page slow.
COUNTED = 5000
SHOWN = 5
RAISE = "raise max_length, which is {0.max_length} tokens."
SHOWN_BAD_ROWS = 100
# Previews of bundled samples that are cached, keyed by recipe and whether its model is downloaded.
CACHED = 16
_samples: dict[tuple[str, bool], Preview] = {}


@dataclass(frozen=True)
class Preview:
    file: str
    names: list[str]
    """The file's columns."""
    problem: str = ""
    """Why the file can't be used; the fields below are then empty."""
    format: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    """The column of each field of the format."""
    rows: int = 0
    train_rows: int = 0
    held_out_rows: int = 0
    duplicates: int = 0
    bad_rows: list[BadRow] = field(default_factory=list)
    bad_count: int = 0
    notices: list[str] = field(default_factory=list)
    examples: list[list[tuple[str, bool]]] = field(default_factory=list)
    tokens: Summary | None = None
    """None until the model and its tokenizer are downloaded."""


def fields_of(format_name: str) -> dict[str, bool]:
    """Return the fields of a format and whether each is required; empty if there is no such format."""
    found = next((each for each in formats() if each.name == format_name), None)
    return {} if found is None else dict.fromkeys(found.fields, True) | dict.fromkeys(found.optional, False)


def preview(recipe: Recipe) -> Preview:
    """Return the preview of a recipe's data.

    Previews of the bundled samples are cached because every page load shows one.

    Raises:
        StudioError: there is no such file, or it has no readable row.
    """
    if recipe.data not in SAMPLES:
        return _preview(recipe)
    key = repr(recipe), catalog.ready(recipe.model)
    if key not in _samples:
        if len(_samples) == CACHED:
            del _samples[next(iter(_samples))]
        _samples[key] = _preview(recipe)
    return _samples[key]


def _preview(recipe: Recipe) -> Preview:
    name = resolve(recipe.data).name
    names = column_names(recipe.data)
    try:
        if recipe.task == "classify":
            return _labelled(recipe, names)
        dataset = read(recipe.data, settings_of(recipe))
    except StudioError as error:
        return Preview(name, names, problem=str(error))
    train, held_out = dataset.split(recipe.eval_share, recipe.seed)
    rendered, notice = _rendered(dataset.examples[:COUNTED], recipe)
    tokens = summary(rendered, recipe.max_length) if rendered else None
    if tokens and tokens.untrained == len(rendered):
        return Preview(name, names, problem=f"Every row is cut before its answer begins: {RAISE.format(recipe)}")
    if tokens and tokens.untrained:
        notice.append(f"{tokens.untrained:,} rows are left out, cut before the answer begins: {RAISE.format(recipe)}")
    seen = _of(dataset, names, len(train), len(held_out), notice)
    return replace(seen, examples=_shown(dataset, rendered, recipe), tokens=tokens)


def _labelled(recipe: Recipe, names: list[str]) -> Preview:
    """Return the preview of labelled rows.

    Raises:
        StudioError: the rows can't be used.
    """
    rows = read_labelled(recipe)
    train, held_out = rows.split(recipe.eval_share, recipe.seed)
    texts, notice = _rendered(rows.examples[:COUNTED], recipe)
    pairs = zip(rows.examples[:SHOWN], rows.targets[:SHOWN], strict=True)
    warnings = rows.warnings(train, held_out, recipe)
    return replace(
        _of(rows.dataset, names, len(train), len(held_out), [*notice, *warnings]),
        examples=[[(f"{each.messages[0]['content']} ", False), (shown(rows.labels, i), True)] for each, i in pairs],
        tokens=summarized(texts, recipe.max_length) if texts else None,
    )


def _of(dataset: Dataset, names: list[str], train_rows: int, held_out_rows: int, notices: list[str]) -> Preview:
    """Return the part of the preview that is the same for all tasks."""
    return Preview(
        dataset.path.name,
        names,
        format=dataset.format,
        columns=dataset.columns,
        rows=len(dataset.examples),
        train_rows=train_rows,
        held_out_rows=held_out_rows,
        duplicates=dataset.duplicates,
        bad_rows=dataset.bad_rows[:SHOWN_BAD_ROWS],
        bad_count=len(dataset.bad_rows),
        notices=[*dataset.notices, *notices],
    )


def _rendered(examples: list[Example], recipe: Recipe) -> tuple[list[Rendered], list[str]]:
    """Return the rendered examples and notices; no examples, and the reason, if the model is not downloaded."""
    if not catalog.ready(recipe.model):
        return [], ["Token counts need the model, which is downloaded when it is first loaded or trained."]
    tokenizer = _tokenizer(recipe)
    notice = [f"Tokens are counted for the first {COUNTED:,} rows."] if len(examples) == COUNTED else []
    read_one = read_text if recipe.task == "classify" else render
    return [read_one(tokenizer, example.messages, recipe.max_length) for example in examples], notice


def _shown(dataset: Dataset, rendered: list[Rendered], recipe: Recipe) -> list[list[tuple[str, bool]]]:
    if rendered:
        tokenizer = _tokenizer(recipe)
        return [spans(tokenizer, each) for each in rendered[:SHOWN]]
    return [
        [(message["content"], message["role"] in ("assistant", "text")) for message in example.messages]
        for example in dataset.examples[:SHOWN]
    ]


def _tokenizer(recipe: Recipe) -> Any:
    return _tokenizer_in(catalog.prepare(recipe.model))


@lru_cache(maxsize=4)
def _tokenizer_in(folder: Path) -> Any:
    """Load a tokenizer. It is cached because the form updates the preview at every change of a setting."""
    return AutoTokenizer.from_pretrained(folder)
