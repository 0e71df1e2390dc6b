"""Limits for visitors of a public demo.

    limits = demo.limits()               # None if there are no limits
    if limits:
        limits.check_recipe(recipe, ["starter"])      # raises StudioError

`STUDIO_DEMO=1` turns the limits on, `STUDIO_DEMO=0` turns them off. By default they are on in every Space: a Space
can't find out who sees it, because its visibility may change at any time, and a protected one looks private to the Hub.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection
from dataclasses import dataclass, replace

from studio.backend.recipe import Recipe
from studio.errors import StudioError

REMEDY = (
    "This studio has the limits of a public demo. Run it yourself, or set STUDIO_DEMO=0 in your own Space, for more"
)


@dataclass(frozen=True)
class Limits:
    text: int = 4000
    """Characters per message, and per text to classify."""
    new_tokens: int = 256
    """Tokens per answer."""
    file_bytes: int = 5_000_000
    uploads_bytes: int = 100_000_000
    """Uploaded files and results of a visitor together."""
    rows: int = 2000
    """Rows per file, for training or classification."""
    steps: int = 60
    step_tokens: int = 8192
    """Tokens per training step: the rows of a batch times the tokens of the longest row."""
    read_length: int = 512
    """Tokens per row of a classifier, which reads all rows once before it is trained."""
    rank: int = 32
    evaluations: int = 6
    """Evaluations of a run, which all compute the held-out rows and answer the sample prompts."""
    eval_share: float = 0.2
    sample_tokens: int = 1024
    """Tokens of all sample answers of an evaluation."""
    queued: int = 4
    """Runs in the queue."""
    quota_gib: float = 10.0
    """Disk space of all runs together."""

    def sentence(self) -> str:
        """Return the limits as a sentence for the page."""
        return (
            f"Public demo: messages of up to {self.text:,} characters, answers of up to {self.new_tokens} tokens, "
            f"files of up to {self.rows:,} rows, training runs of up to {self.steps} steps."
        )

    def refuse_another_model(self) -> None:
        """Raise StudioError, because all visitors share the loaded model."""
        raise StudioError(f"{REMEDY}; here all visitors share the loaded model.")

    def check_answer(self, new_tokens: int) -> None:
        """Raise StudioError if an answer could exceed the limit."""
        if new_tokens > self.new_tokens:
            raise StudioError(f"{REMEDY}; here answers have at most {self.new_tokens} tokens. Lower Max new tokens.")

    def check_recipe(self, recipe: Recipe, models: Collection[str]) -> None:
        """Raise StudioError if the recipe exceeds limits; the message lists all of them.

        Args:
            models: ids of the models that a run may use; any other would have to be downloaded and loaded for it.
        """
        asked = {
            f"model {' or '.join(models)}": recipe.model not in models,
            "precision auto": recipe.precision != "auto",
            f"eval_share up to {self.eval_share}": recipe.eval_share > self.eval_share,
        }
        if recipe.task == "classify":
            asked[f"max_length up to {self.read_length:,} for a classifier"] = recipe.max_length > self.read_length
        if recipe.method == "lora":
            asked |= self._of_training(recipe)
        if wrong := [what for what, is_too_much in asked.items() if is_too_much]:
            raise StudioError(f"{REMEDY}; here a run is limited to {', '.join(wrong)}. Change that under Recipe.")

    def _of_training(self, recipe: Recipe) -> dict[str, bool]:
        """Return the limits of training steps, which a probe has none of, and whether the recipe exceeds them."""
        return {
            f"max_steps from 1 to {self.steps}": not 1 <= recipe.max_steps <= self.steps,
            f"batch_size * gradient_accumulation * max_length up to {self.step_tokens:,}": (
                recipe.batch_size * recipe.gradient_accumulation * recipe.max_length > self.step_tokens
            ),
            f"r up to {self.rank}": recipe.r > self.rank,
            f"max_steps / eval_steps up to {self.evaluations}": recipe.max_steps > self.evaluations * recipe.eval_steps,
            f"sample_tokens up to {self.sample_tokens:,} for all sample prompts": (
                recipe.sample_tokens * max(1, len(recipe.sample_prompts)) > self.sample_tokens
            ),
        }

    def lowered(self, recipe: Recipe) -> Recipe:
        """Return the recipe with all settings within the limits, except its model."""
        max_length = min(recipe.max_length, self.read_length if recipe.task == "classify" else self.step_tokens)
        batch_size = max(1, min(recipe.batch_size, self.step_tokens // max_length))
        batches = max(1, self.step_tokens // (batch_size * max_length))
        steps = min(recipe.max_steps or self.steps, self.steps)
        fewest = math.ceil(steps / self.evaluations)
        is_often = recipe.eval_steps < fewest
        return replace(
            recipe,
            precision="auto",
            max_length=max_length,
            batch_size=batch_size,
            gradient_accumulation=min(recipe.gradient_accumulation, batches),
            max_steps=steps,
            r=min(recipe.r, self.rank),
            eval_share=min(recipe.eval_share, self.eval_share),
            eval_steps=fewest if is_often else recipe.eval_steps,
            save_steps=fewest if is_often else recipe.save_steps,
            sample_tokens=min(recipe.sample_tokens, self.sample_tokens // max(1, len(recipe.sample_prompts))),
        )

    def check_rows(self, rows: int) -> None:
        """Raise StudioError if a file has too many rows."""
        if rows > self.rows:
            raise StudioError(f"{REMEDY}; here a file has at most {self.rows:,} rows, and this one has more.")


def limits() -> Limits | None:
    """Return the limits, or None if the studio is not a demo.

    Raises:
        StudioError: `$STUDIO_DEMO` is neither 0 nor 1.
    """
    asked = os.environ.get("STUDIO_DEMO", "")
    if asked not in ("", "0", "1"):
        raise StudioError(f"STUDIO_DEMO is {asked[:20]!r}: set it to 1 for a demo with limits, or to 0 for no limits.")
    is_demo = asked == "1" or (not asked and space_id() is not None)
    return Limits() if is_demo else None


def space_id() -> str | None:
    """Return the id of this Space, or None outside of Spaces."""
    name = os.environ.get("SPACE_ID", "")
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII) else None
