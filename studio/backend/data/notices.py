"""What a person should know before a run, in the preview, the dry run and on the run's page; the gravest first.

notices(dataset, summary(rendered, recipe.max_length), held_out=40, recipe=recipe)
"""

from __future__ import annotations

from studio.backend.data.dataset import Dataset, split_notice
from studio.backend.data.rendering import Summary
from studio.backend.data.row import BadRow
from studio.backend.recipe import Recipe

SHOWN_BAD_ROWS = 5


def notices(dataset: Dataset, tokens: Summary | None, held_out: int, recipe: Recipe) -> list[str]:
    """Return sentences about the rows that are read, left out, cut or held out."""
    found = [*_of_tokens(tokens, recipe)] if tokens else []
    found.append(split_notice(recipe.eval_share, held_out, len(dataset.examples)))
    found += [*_of_bad_rows(dataset.bad_rows), *dataset.notices]
    return [sentence for sentence in found if sentence]


def _of_tokens(tokens: Summary, recipe: Recipe) -> list[str]:
    found = [
        f"Rows that hold the control token {token} as text: {count:,}. Its characters are trained like any others. If "
        "the rows already hold a chat template, remove it: the studio adds the model's own."
        for token, count in tokens.controls.items()
        if recipe.task == "chat"
    ]
    if tokens.untrained:
        found.append(
            f"{tokens.untrained:,} rows are left out: cut before their answer starts. Raise max_length, which is "
            f"{recipe.max_length} tokens."
        )
    if tokens.cut:
        found.append(f"{tokens.cut:,} rows are longer than max_length={recipe.max_length} tokens and are cut.")
    return found


def _of_bad_rows(bad_rows: list[BadRow]) -> list[str]:
    if not bad_rows:
        return []
    shown = "; ".join(str(bad) for bad in bad_rows[:SHOWN_BAD_ROWS])
    return [f"{len(bad_rows):,} bad rows were left out, such as {shown}"]
