"""Read labelled texts for a classifier: the target of each row, and a stratified split.

    rows = read_labelled(recipe)
    rows.names                       # ("negative", "positive"), in the order of the head
    train, held_out = rows.split(eval_share=0.1, seed=0)

Texts that differ only in case and whitespace always end up on the same side of the split.
"""

from __future__ import annotations

import math
import random
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from studio.backend.data.dataset import Dataset, check_rows, read, settings_of
from studio.backend.data.examples import Examples, group_numbers
from studio.backend.data.formats.labelled import spelled
from studio.backend.data.prompt import Messages
from studio.backend.data.rendering import Rendered, Summary, summary
from studio.backend.data.rows import BadRow, Problem
from studio.backend.data.stratified import drawn
from studio.backend.data.text_prompt import encode_all, prompt_for
from studio.backend.recipe import Recipe
from studio.backend.recipe_conflicts import NO_PROMPT
from studio.errors import StudioError

MOST_LABELS = 256
SHOWN = 5
"""Maximum labels listed in one message."""
UNEVEN = 10
"""Ratio of the most to the least frequent label above which a warning recommends class weights."""
LARGE = 10.0
"""Targets beyond this magnitude have large losses and gradients, which training by steps can't follow."""
BATCH = 256
"""Texts that are tokenized in one call."""
SEPARATOR = re.compile("[;|]")
Target = int | tuple[int, ...] | float
"""A label index, several label indices, or a number."""


@dataclass(frozen=True)
class Labels:
    """The labels of a classifier, and the statistics that training needs."""

    problem: str
    """The recipe's problem."""
    names: tuple[str, ...]
    """In the order of the head; for a regression, the name of the column."""
    counts: tuple[int, ...] = ()
    """Training rows per label."""
    weights: str = "none"
    """The recipe's class_weights."""
    rows: int = 0
    """Number of training rows."""
    prompt: str = NO_PROMPT
    """The prompt around each text, with {text} where the text belongs."""
    temperature: float = 1.0
    """Divides the logits of single-label problems to calibrate the confidences."""
    with_tfidf: bool = False
    """Whether the logits of a TF-IDF model are added to those of the head."""

    def report(self) -> dict[str, Any]:
        """Return the problem and the label counts for events and model cards."""
        return {"problem": self.problem, "labels": dict(zip(self.names, self.counts, strict=True))}


class Truth(NamedTuple):
    """Texts with their true labels."""

    problem: str
    names: tuple[str, ...]
    texts: Sequence[str]
    targets: Sequence[Target]

    def part(self, rows: Sequence[int]) -> Truth:
        """Return these rows, in this order."""
        return self._replace(texts=[self.texts[i] for i in rows], targets=[self.targets[i] for i in rows])


@dataclass(frozen=True)
class LabelledRows:
    dataset: Dataset
    """Its examples are the usable rows; all other rows are in its `bad_rows`."""
    problem: str
    names: tuple[str, ...]
    targets: list[Target]
    """One target per example of the data set."""
    prompt: str = NO_PROMPT

    @property
    def examples(self) -> Examples:
        return self.dataset.examples

    @property
    def labels(self) -> Labels:
        return Labels(self.problem, self.names)

    def split(self, eval_share: float, seed: int) -> tuple[list[int], list[int]]:
        """Return the indices of the (training, held-out) examples; the same seed gives the same split."""
        strata: dict[Any, list[list[int]]] = defaultdict(list)
        for group in self._groups:
            strata[self._stratum(group)].append(group)
        held_out = drawn([*strata.values()], eval_share, random.Random(seed))
        return [i for i in range(len(self.targets)) if i not in held_out], sorted(held_out)

    def truth(self, indices: Sequence[int]) -> Truth:
        """Return the texts and targets of these examples."""
        texts = [self.examples[i].messages[0]["content"] for i in indices]
        return Truth(self.problem, self.names, texts, [self.targets[i] for i in indices])

    def counts(self, indices: Iterable[int]) -> tuple[int, ...]:
        """Return the number of these rows with each label; for a regression, the number of rows."""
        found = Counter(label for i in indices for label in self._labels(i))
        return tuple(found[label] for label in range(len(self.names)))

    def warnings(self, train: Sequence[int], held_out: Sequence[int], recipe: Recipe) -> list[str]:
        """Return warnings about the labels, to show before training."""
        if self.problem == "regression":
            return [] if recipe.method == "probe" else _large_numbers(self.targets)
        warnings = [*_alike(self.names), *self._disagreeing()]
        every, measured = self._counts, self.counts(held_out)
        texts = Counter(label for group in self._groups for label in {x for i in group for x in self._labels(i)})
        once = [name for label, name in enumerate(self.names) if texts[label] == 1]
        unmeasured = [name for name, count in zip(self.names, measured, strict=True) if not count and name not in once]
        if once and held_out:
            warnings.append(f"Labels with a single text, which can't be evaluated: {_listed(once)}. Add more rows.")
        if unmeasured and held_out:
            warnings.append(f"Labels without held-out rows: {_listed(unmeasured)}. Raise eval_share to evaluate them.")
        if max(every) > UNEVEN * min(every) and recipe.class_weights == "none":
            most, least = self.names[int(np.argmax(every))], self.names[int(np.argmin(every))]
            warnings.append(
                f"The labels are imbalanced: {most!r} has {max(every):,} rows, {least!r} has {min(every):,}. Consider "
                "class_weights=balanced."
            )
        return warnings

    @cached_property
    def _groups(self) -> list[list[int]]:
        """Indices of the examples, grouped by text, ignoring case and whitespace."""
        groups: dict[int, list[int]] = defaultdict(list)
        for i, number in enumerate(group_numbers(self.examples.contents).tolist()):
            groups[number].append(i)
        return [*groups.values()]

    def _labels(self, i: int) -> tuple[int, ...]:
        target = self.targets[i]
        return (0,) if isinstance(target, float) else (target,) if isinstance(target, int) else target

    def _stratum(self, group: list[int]) -> int | None:
        """Return the rarest label of the group, or the quintile of its number; None without labels."""
        if self.problem == "regression":
            return int(np.searchsorted(self._fifths, self.targets[group[0]]))
        return min((label for i in group for label in self._labels(i)), key=lambda i: self._counts[i], default=None)

    @cached_property
    def _counts(self) -> tuple[int, ...]:
        return self.counts(range(len(self.targets)))

    @cached_property
    def _fifths(self) -> Any:
        return np.quantile(np.asarray(self.targets, np.float64), [0.2, 0.4, 0.6, 0.8])

    def _disagreeing(self) -> list[str]:
        groups = [group for group in self._groups if len({self.targets[i] for i in group}) > 1]
        if not groups:
            return []
        lines = ", ".join(str(self.examples[i].line) for i in groups[0][:SHOWN])
        return [f"{len(groups):,} texts occur with different labels, for example on lines {lines}. Correct these rows."]


def read_labelled(recipe: Recipe, first: int = 0) -> LabelledRows:
    """Read the labelled rows of the recipe's file, or about the `first` ones.

    Raises:
        StudioError: as of `read`, or the label column has too few or too many labels.
    """
    dataset = read(recipe.data, settings_of(recipe), first)
    column = dataset.columns["label"]
    dataset = _split_at_commas(dataset, column) if recipe.problem == "multi_label" else dataset
    is_good, values = [], []
    bad_rows = [*dataset.bad_rows]
    for example in dataset.examples:
        try:
            values.append(_value(example.labels, recipe.problem, column))
            is_good.append(True)
        except Problem as problem:
            bad_rows.append(BadRow(example.line, *problem.args))
            is_good.append(False)
    bad_rows.sort(key=lambda bad: bad.line)
    check_rows(dataset.path, len(values), bad_rows, recipe.on_bad_rows)
    if not all(is_good):
        dataset = replace(dataset, examples=dataset.examples.where(is_good), bad_rows=bad_rows)
    if recipe.problem == "regression":
        _check_numbers(values, column, dataset.is_part)
        prompt = prompt_for(recipe, column)
        return LabelledRows(dataset, recipe.problem, (column,), [float(value) for value in values], prompt)
    names = _sorted({name for value in values for name in value})
    _check_names(names, values, recipe.problem, column, dataset.is_part)
    places = {name: i for i, name in enumerate(names)}
    targets: list[Target] = [tuple(sorted(places[name] for name in value)) for value in values]
    if recipe.problem == "single_label":
        targets = [target[0] for target in targets]  # type: ignore[index]
    return LabelledRows(dataset, recipe.problem, names, targets, prompt_for(recipe, column))


def _split_at_commas(dataset: Dataset, column: str) -> Dataset:
    """Return the data set with labels that were joined by commas, if no cell has another separator."""
    cells = [example.labels for example in dataset.examples]
    labels = set(chain.from_iterable(cells))
    if any(len(each) > 1 for each in cells) or any(map(SEPARATOR.search, labels)) or not any("," in x for x in labels):
        return dataset
    split = (replace(each, labels=_at_commas(each.labels)) for each in dataset.examples)
    examples = Examples.of(split)
    notice = f"Cells of {column!r} were split at commas into several labels. Use ; if a label has a comma."
    return replace(dataset, examples=examples, warnings=(notice, *dataset.warnings))


def _at_commas(labels: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(",".join(labels).split(","))


def read_texts(
    tokenizer: PreTrainedTokenizerBase, conversations: Iterable[Messages], max_length: int, prompt: str
) -> list[Rendered]:
    """Encode the texts of labelled rows in their prompt, in batches. No token is marked as trained."""
    texts, found = iter(conversations), []
    while batch := [messages[0]["content"] for messages in islice(texts, BATCH)]:
        encoded = encode_all(tokenizer, batch, max_length, prompt)
        found += [Rendered(array("i", token_ids), bytes(len(token_ids)), cut) for token_ids, cut in encoded]
    return found


def summarized(texts: Iterable[Rendered], max_length: int) -> Summary:
    """Return the summary of labelled texts. They have no trained tokens, so none counts as untrained."""
    rendered = [*texts]
    tokens = sum(len(each.token_ids) for each in rendered)
    return replace(summary(rendered, max_length), untrained=0, tokens=tokens)


def shown(labels: Labels, target: Target) -> str:
    """Return a target as readable text."""
    if isinstance(target, float):
        return f"{target:g}"
    return " | ".join(labels.names[i] for i in ((target,) if isinstance(target, int) else target)) or "no label"


# --- cells


def target_of(labels: tuple[str, ...], problem: str, names: Sequence[str], column: str) -> Target | str:
    """Return the target, or the first name that is not in `names`. A cell of several labels may have commas.

    Raises:
        Problem: the cell holds no valid target.
    """
    value = _value(labels, problem, column)
    if problem == "regression":
        return float(value)
    known = _places(tuple(names))
    if problem == "multi_label" and not all(spelled(name) in known for name in value):
        value = _value(_at_commas(labels), problem, column)
    if unknown := [name for name in value if spelled(name) not in known]:
        return str(unknown[0])
    places = tuple(sorted(known[spelled(name)] for name in value))
    return places[0] if problem == "single_label" else places


@lru_cache(maxsize=4)
def _places(names: tuple[str, ...]) -> dict[str, int]:
    return {spelled(name): place for place, name in enumerate(names)}  # an older classifier may have `True`


def _value(labels: tuple[str, ...], problem: str, column: str) -> Any:
    """Return the label names, or the number of a regression.

    Raises:
        Problem: there is not exactly one label (except in multi-label problems), or a regression's label is no number.
    """
    if problem == "multi_label":
        parts = [" ".join(part.split()) for label in labels for part in SEPARATOR.split(label)]
        return tuple(dict.fromkeys(part for part in parts if part))
    if len(labels) != 1:
        raise Problem(column, f"holds {len(labels)} labels", "Give one, or set problem to multi_label.")
    return labels if problem == "single_label" else _number(labels[0], column)


def _number(text: str, column: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise Problem(column, f"is {text[:40]!r}, which is not a number", "Write a number, or change problem.")
    return value


def _sorted(names: set[str]) -> tuple[str, ...]:
    """Sort names; if all are numbers, sort by value so that 2 comes before 10."""
    try:
        return tuple(sorted(names, key=lambda name: (float(name), name)))
    except ValueError:
        return tuple(sorted(names))


def _check_numbers(values: list[float], column: str, is_part: bool) -> None:
    if len(set(values)) < 2 and not is_part:
        raise StudioError(
            f"Every row has the number {values[0]:g} in {column!r}, so there is nothing to learn. Add other numbers."
        )


def _check_names(
    names: tuple[str, ...], values: list[tuple[str, ...]], problem: str, column: str, is_part: bool
) -> None:
    """Raise StudioError if there are too many labels or, in a whole file, none or only one."""
    if not names and not is_part:
        raise StudioError(f"No row has a label in {column!r}, so there is nothing to learn. Add labels.")
    if len(names) == 1 and all(values) and not is_part:
        raise StudioError(
            f"Every row has the label {names[0]!r} in {column!r}: a classifier needs at least two. Add rows of another "
            "label, or set `columns` to the column that holds the labels."
        )
    if len(names) > MOST_LABELS:
        joined = problem == "single_label" and any(map(SEPARATOR.search, names))
        remedy = "Set problem to multi_label, where cells hold several labels." if joined else (
            "Set `columns` to the column that holds the labels, merge rare labels, or, if the labels are numbers to "
            "estimate, set problem to regression."
        )  # fmt: skip
        raise StudioError(
            f"{column!r} holds {len(names):,} different labels in {len(values):,} rows; a head supports at most "
            f"{MOST_LABELS}. {remedy}"
        )


# --- warnings


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")


def _alike(names: Sequence[str]) -> list[str]:
    """Return warnings about two common spreadsheet mistakes: labels that differ only in case, and joined labels."""
    warnings = []
    spellings = defaultdict(list)
    for name in names:
        spellings[name.casefold()].append(name)
    if twins := [each for each in spellings.values() if len(each) > 1]:
        warnings.append(f"The labels {_listed(twins[0])} differ only in case and count as different labels.")
    joined = [name for name in names if SEPARATOR.search(name)]
    parts = [{part.strip() for part in name.split(",")} for name in names]
    single = set().union(*(each for each in parts if len(each) == 1))
    often = Counter(part for each in parts for part in each)
    recurring = {part for part, count in often.items() if count > 1} | single
    joined += [name for name, each in zip(names, parts, strict=True) if len(each) > 1 and each <= recurring]
    if joined:
        warnings.append(f"If cells such as {_listed(joined)} hold several labels, set problem to multi_label.")
    return warnings


def _large_numbers(targets: Sequence[Any]) -> list[str]:
    numbers = np.asarray(targets, np.float64)
    if np.abs(numbers).max() <= LARGE:
        return []
    return [
        f"The numbers range from {numbers.min():g} to {numbers.max():g}, which LoRA learns slowly. Scale them to "
        f"between {-LARGE:g} and {LARGE:g}, or set method to probe."
    ]
