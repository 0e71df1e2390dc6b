"""What a person should know before a run, in the preview, the dry run and on the run's page.

What changes what is trained stands first.

notices(dataset, summary(rendered, recipe.max_length), held_out=40, recipe=recipe)
"""

from __future__ import annotations

from collections.abc import Sequence

from studio.backend.data.dataset import Dataset, split_notice
from studio.backend.data.rendering import Summary
from studio.backend.data.row import BadRow
from studio.backend.recipe import Recipe

SHOWN_BAD_ROWS = 5


def notices(
    dataset: Dataset, tokens: Summary | None, held_out: int, recipe: Recipe, more: Sequence[str] = ()
) -> list[str]:
    """Return sentences about the rows that are read, left out, cut or held out.

    Args:
        tokens: None if the rows are not tokenized, because the model is not downloaded.
        held_out: number of held-out rows.
        more: warnings about the labels.
    """
    found = [
        *dataset.warnings,
        *(_of_control_tokens(tokens) if tokens and recipe.task == "chat" else []),
        _of_untrained(tokens.untrained, recipe.max_length) if tokens else "",
        _of_bad_rows(dataset.bad_rows),
        _of_cut(tokens.cut, recipe.max_length) if tokens else "",
        *more,
        _of_split(dataset, held_out, recipe),
        *dataset.notices,
    ]
    return [sentence for sentence in found if sentence]


def _of_split(dataset: Dataset, held_out: int, recipe: Recipe) -> str:
    total = len(dataset.examples)
    if recipe.task == "chat" or total - dataset.duplicates == 1:
        return split_notice(recipe.eval_share, held_out, total)
    of = "fifth of the numbers" if recipe.problem == "regression" else "label"
    return split_notice(recipe.eval_share, held_out, total, f"no {of} has two different texts, and one of them trains")


def _of_control_tokens(tokens: Summary) -> list[str]:
    return [
        f"Rows that hold the control token {token} as text: {count:,}. Its characters are trained like any others. If "
        "the rows already hold a chat template, remove it: the studio adds the model's own."
        for token, count in tokens.controls.items()
    ]


def _of_untrained(count: int, max_length: int) -> str:
    if not count:
        return ""
    return (
        f"{count:,} rows are left out: cut before their answer starts. Raise max_length, which is {max_length} tokens."
    )


def _of_bad_rows(bad_rows: list[BadRow]) -> str:
    if not bad_rows:
        return ""
    shown = "; ".join(str(bad) for bad in bad_rows[:SHOWN_BAD_ROWS])
    return f"{len(bad_rows):,} bad rows were left out, such as {shown}"


def _of_cut(count: int, max_length: int) -> str:
    return f"{count:,} rows are longer than max_length={max_length} tokens and are cut." if count else ""
