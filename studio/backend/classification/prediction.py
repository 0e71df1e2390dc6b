"""What a classifier says of one text or of one row of a file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from jetmoe import RoutingTrace
from studio.backend.data.rows import BadRow


@dataclass(frozen=True)
class Prediction:
    text: str
    label: str
    confidence: float
    """Of the label, 0 to 1; NaN where none is known, as of a number."""
    scores: dict[str, float]
    """The confidence of every label; they sum to 1 where one label excludes the others."""
    notices: tuple[str, ...] = ()
    """Sentences for the person; `cut` is one of them."""
    cut: str = ""
    """That the text was too long, and what was left out."""
    trace: RoutingTrace | None = None
    """The routing of the text's tokens, where it was asked for."""

    def row(self) -> dict[str, object]:
        """As `classify predict --json` prints it."""
        confidence = None if math.isnan(self.confidence) else self.confidence
        return {"text": self.text, "label": self.label, "confidence": confidence, "scores": self.scores}


class LabelledRow(NamedTuple):
    """A row of a file that is classified; `prediction` is None where it can't be."""

    line: int
    cells: dict[str, Any]
    """As they were; empty where the row can't be read."""
    prediction: Prediction | None
    problem: BadRow | None = None
