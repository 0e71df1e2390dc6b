"""A studio that is open to everybody: what one visitor may ask of it.

    limits = demo.limits()               # None where everything is allowed
    if limits:
        limits.check_recipe(recipe)      # raises StudioError

`STUDIO_DEMO=1` turns it on and `STUDIO_DEMO=0` off. Without either it is on where the studio is a Space that everybody
can see; of a Space whose owner can't be asked about, that is assumed.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from functools import cache

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError

from studio.backend.recipe import Recipe
from studio.errors import StudioError

logger = logging.getLogger(__name__)
REMEDY = "This is a demo for everybody. Run the studio yourself for more"


@dataclass(frozen=True)
class Limits:
    text: int = 4000
    """Characters of a message, and of texts to classify."""
    new_tokens: int = 256
    """Of an answer."""
    file_bytes: int = 5_000_000
    rows: int = 2000
    """Of a file to train on or to classify."""
    steps: int = 60
    step_tokens: int = 8192
    """That a training step may hold: rows of a batch times their longest."""
    rank: int = 32
    queued: int = 4
    """Runs that wait."""
    quota_gib: float = 10.0
    """That all runs together take of the disk."""

    def sentence(self) -> str:
        """What a visitor should know at once."""
        return (
            f"A demo for everybody: messages of up to {self.text:,} characters, answers of {self.new_tokens} tokens, "
            f"files of {self.rows:,} rows, training of {self.steps} steps."
        )

    def refuse_another_model(self) -> None:
        """Raises StudioError: all visitors have the model that is loaded."""
        raise StudioError(f"{REMEDY}; here everybody has the model that is loaded.")

    def check_answer(self, new_tokens: int) -> None:
        """Raises StudioError: it may become longer than a demo answers."""
        if new_tokens > self.new_tokens:
            raise StudioError(f"{REMEDY}; here answers have at most {self.new_tokens} tokens. Lower Max new tokens.")

    def check_recipe(self, recipe: Recipe) -> None:
        """Raises StudioError: it takes more than a demo gives; all of it is named at once."""
        asked = {
            f"max_steps from 1 to {self.steps}": not 1 <= recipe.max_steps <= self.steps,
            f"batch_size * gradient_accumulation * max_length up to {self.step_tokens:,}": (
                recipe.batch_size * recipe.gradient_accumulation * recipe.max_length > self.step_tokens
            ),
            f"r up to {self.rank}": recipe.r > self.rank,
        }
        if wrong := [what for what, is_too_much in asked.items() if is_too_much]:
            raise StudioError(f"{REMEDY}; here a run takes {', '.join(wrong)}. Change that under Recipe.")

    def check_rows(self, rows: int) -> None:
        """Raises StudioError: the file has more than a demo reads."""
        if rows > self.rows:
            raise StudioError(f"{REMEDY}; here a file has at most {self.rows:,} rows, and this one has {rows:,}.")


def limits() -> Limits | None:
    """None where the studio is no demo.

    Raises:
        StudioError: `$STUDIO_DEMO` is neither 0 nor 1.
    """
    asked = os.environ.get("STUDIO_DEMO", "")
    if asked not in ("", "0", "1"):
        raise StudioError(f"STUDIO_DEMO is 1 for a demo with limits or 0 for a studio without; it is {asked[:20]!r}.")
    space = space_id()
    is_demo = asked == "1" or (not asked and space is not None and _is_public(space))
    return Limits() if is_demo else None


def space_id() -> str | None:
    """That of the Space which this is; None elsewhere."""
    name = os.environ.get("SPACE_ID", "")
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII) else None


@cache
def _is_public(space: str) -> bool:
    """Whether the hub shows it to somebody without an account. Also where the hub can't be asked."""
    try:
        HfApi(token=False).space_info(space, timeout=5)
    except RepositoryNotFoundError:
        return False
    except (HTTPError, OSError) as error:
        logger.warning("The hub can't say whether %s is public (%s): it is taken for a demo.", space, error)
    return True
