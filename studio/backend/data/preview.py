"""Preview a data set before training: its rows, the trained tokens and the problems.

seen = preview(Recipe(data="rows.csv"))
seen.problem           # why the file can't be used; `names` then holds the columns to choose from
seen.examples[0]       # spans of text, whether each is trained, and whether it is a control token

Of a large file, the first rows are read, and the counts of the rest are estimates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from studio.backend.data.dataset import SAMPLES, Dataset, first_rows, formats, read, resolve, settings_of
from studio.backend.data.detection import GUESSED, UnknownColumns
from studio.backend.data.examples import Examples
from studio.backend.data.labelled import read_labelled, read_texts, shown, summarized
from studio.backend.data.notices import notices
from studio.backend.data.rendering import Rendered, Span, Summary, render_all, summary, unfit_rows
from studio.backend.data.rendering import preview as spans
from studio.backend.data.rows import BadRow
from studio.backend.data.text_prompt import filled
from studio.backend.models import catalog
from studio.backend.recipe import Recipe
from studio.errors import StudioError

FIRST = 2500
"""Rows that are read of a large file. Reading more would make the page slow."""
SHOWN = 5
SHOWN_BAD_ROWS = 100
UNKNOWN = (
    "The column names of {} don't tell what is trained. Choose what the rows are used for and the format, then the "
    "column of each field."
)
# Previews of bundled samples that are cached, keyed by recipe and whether its model is downloaded.
CACHED = 16
_samples: dict[tuple[str, bool], Preview] = {}


@dataclass(frozen=True)
class Preview:
    file: str
    names: list[str]
    """The file's columns."""
    raw: list[dict[str, Any]] = field(default_factory=list)
    """The first rows as they are in the file; only if the file can't be used, or its columns are a guess."""
    problem: str = ""
    """Why the file can't be used; the fields below are then empty."""
    format: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    """The column of each field of the format."""
    is_part: bool = False
    """Whether the counts below are those of the first rows; the row counts are then estimates."""
    rows: int = 0
    train_rows: int = 0
    held_out_rows: int = 0
    duplicates: int = 0
    bad_rows: list[BadRow] = field(default_factory=list)
    bad_count: int = 0
    notices: list[str] = field(default_factory=list)
    examples: list[list[Span]] = field(default_factory=list)
    tokens: Summary | None = None
    """None until the model and its tokenizer are downloaded."""

    def longest(self, recipe: Recipe) -> int:
        """Return the most tokens that a row, or a pack, of the recipe may have."""
        is_packed = recipe.packing and recipe.task == "chat"
        return recipe.max_length if is_packed or self.is_part or self.tokens is None else self.tokens.longest


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
    first = first_rows(recipe.data, settings_of(recipe))
    unusable = Preview(name, list(dict.fromkeys(chain(*first))), first[:SHOWN])
    try:
        return (
            _labelled(recipe, unusable.names) if recipe.task == "classify" else _conversations(recipe, unusable.names)
        )
    except UnknownColumns as error:
        return _guessed(recipe, error, unusable)
    except StudioError as error:
        return replace(unusable, problem=str(error))


def _guessed(recipe: Recipe, error: UnknownColumns, unusable: Preview) -> Preview:
    """Return the preview with guessed columns, or the raw rows if there is no guess."""
    if error.columns:
        seen = _preview(replace(recipe, format=error.format, columns=error.columns))
        if not seen.problem:
            return replace(seen, notices=[error.assumption, *seen.notices], raw=unusable.raw)
    return replace(unusable, problem=UNKNOWN.format(unusable.file) if error.assumption == GUESSED else str(error))


def _conversations(recipe: Recipe, names: list[str]) -> Preview:
    """Return the preview of conversations and plain texts.

    Raises:
        StudioError: the rows can't be used.
    """
    dataset = read(recipe.data, settings_of(recipe), FIRST)
    parts = dataset.split(recipe.eval_share, recipe.seed)
    rendered, notice = _rendered(dataset.examples, recipe)
    unfit = unfit_rows(dict(enumerate(rendered)), dataset.examples)
    dataset = dataset.without(unfit, recipe.on_bad_rows)
    rendered = [each for each in rendered if not each.unfit]
    train, held_out = (len([i for i in part.tolist() if i not in unfit]) for part in parts)
    tokens = summary(rendered, recipe.max_length) if rendered else None
    if tokens and tokens.untrained == len(rendered):
        raise StudioError(
            f"Every row is cut before its answer begins: raise max_length, which is {recipe.max_length} tokens."
        )
    found = [*notices(dataset, tokens, held_out, recipe), *notice]
    seen = _of(dataset, names, train, held_out, found)
    return replace(seen, examples=_shown(dataset, rendered, recipe), tokens=tokens)


def _labelled(recipe: Recipe, names: list[str]) -> Preview:
    """Return the preview of labelled rows.

    Raises:
        StudioError: the rows can't be used.
    """
    rows = read_labelled(recipe, FIRST)
    train, held_out = rows.split(recipe.eval_share, recipe.seed)
    texts, notice = _rendered(rows.examples, recipe, rows.prompt)
    tokens = summarized(texts, recipe.max_length) if texts else None
    pairs = zip(rows.examples[:SHOWN], rows.targets[:SHOWN], strict=True)
    found = notices(rows.dataset, tokens, len(held_out), recipe, rows.warnings(train, held_out, recipe))
    return replace(
        _of(rows.dataset, names, len(train), len(held_out), [*found, *notice]),
        examples=[
            [Span(f"{filled(rows.prompt, each.messages[0]['content'])} ", False), Span(shown(rows.labels, i), True)]
            for each, i in pairs
        ],
        tokens=tokens,
    )


def _of(dataset: Dataset, names: list[str], train_rows: int, held_out_rows: int, notices: list[str]) -> Preview:
    """Return the part of the preview that is the same for all tasks."""
    read_rows = len(dataset.examples) + len(dataset.bad_rows)
    scale = max(dataset.total / read_rows, 1) if dataset.is_part else 1
    return Preview(
        dataset.path.name,
        names,
        format=dataset.format,
        columns=dataset.columns,
        is_part=dataset.is_part,
        rows=round(len(dataset.examples) * scale),
        train_rows=round(train_rows * scale),
        held_out_rows=round(held_out_rows * scale),
        duplicates=dataset.duplicates,
        bad_rows=dataset.bad_rows[:SHOWN_BAD_ROWS],
        bad_count=len(dataset.bad_rows),
        notices=notices,
    )


def _rendered(examples: Examples, recipe: Recipe, prompt: str = "") -> tuple[list[Rendered], list[str]]:
    """Return the rendered examples and notices; no examples, and the reason, if the model is not downloaded.

    Args:
        prompt: the prompt around the texts of a classifier.
    """
    if not catalog.ready(recipe.model):
        return [], ["Token counts need the model, which is downloaded when it is first loaded or trained."]
    tokenizer, conversations = _tokenizer(recipe), (each.messages for each in examples)
    if prompt:
        return read_texts(tokenizer, conversations, recipe.max_length, prompt), []
    return render_all(tokenizer, conversations, recipe.max_length), []


def _shown(dataset: Dataset, rendered: Sequence[Rendered], recipe: Recipe) -> list[list[Span]]:
    if rendered:
        tokenizer = _tokenizer(recipe)
        return [spans(tokenizer, each) for each in rendered[:SHOWN]]
    return [
        [Span(message["content"], message["role"] in ("assistant", "text")) for message in example.messages]
        for example in dataset.examples[:SHOWN]
    ]


def _tokenizer(recipe: Recipe) -> Any:
    return _tokenizer_in(catalog.prepare(recipe.model))


@lru_cache(maxsize=4)
def _tokenizer_in(folder: Path) -> Any:
    """Load a tokenizer. It is cached because the form updates the preview at every change of a setting."""
    return AutoTokenizer.from_pretrained(folder)
