"""The parts of a run's preparation, logged as they begin, so that a page lists them with ticks.

preparing = Preparing(run, recipe, show)
preparing.begin("data")
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from studio.backend.recipe import Recipe
from studio.backend.runs.events import TrainEvent
from studio.backend.runs.run import Run
from studio.backend.training.checkpoint import last_step


class Preparing:
    """Log the parts of a preparation.

    Args:
        run: None in processes that log nothing.
    """

    def __init__(self, run: Run | None, recipe: Recipe, show: Callable[[TrainEvent], None]) -> None:
        self.run, self.show = run, show
        self.step = last_step(run) if run else 0
        self.parts = parts_of(recipe, is_new=not self.step)

    def begin(self, part: str, note: str = "") -> None:
        """Log that a part begins, which ends the part before; no-op for a part that this run does not list."""
        if self.run is None or part not in self.parts:
            return
        event = self.run.events.append("preparing", self.step, {"part": part, "parts": self.parts, "note": note})
        with suppress(BrokenPipeError):  # a closed terminal does not end the run
            self.show(event)


def parts_of(recipe: Recipe, is_new: bool) -> list[str]:
    """Return the parts in their order. A resumed run measures nothing again."""
    is_chat = recipe.task == "chat"
    return [
        "files",
        "data",
        "model",
        *(["trial"] if is_new else []),
        *([] if is_chat else ["head"]),
        *(["baseline"] if is_new and is_chat and recipe.eval_share else []),
        *(["samples"] if is_new and is_chat else []),
    ]
