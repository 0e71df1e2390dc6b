"""The prediction of a classifier for one text or one row of a file."""

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
    """Confidence of the label, 0 to 1; NaN for a regression."""
    scores: dict[str, float]
    """Confidence of every label; they sum to 1 in single-label problems."""
    notices: tuple[str, ...] = ()
    """Sentences for the user, including `cut`."""
    cut: str = ""
    """A notice if the text was truncated, else ""."""
    trace: RoutingTrace | None = None
    """Routing of the text's tokens, if requested."""

    def row(self) -> dict[str, object]:
        """Return the prediction as `classify predict --json` prints it."""
        confidence = None if math.isnan(self.confidence) else self.confidence
        return {"text": self.text, "label": self.label, "confidence": confidence, "scores": self.scores}


class LabelledRow(NamedTuple):
    """A classified row of a file; `prediction` is None for a bad row."""

    line: int
    cells: dict[str, Any]
    """As read from the file; empty if the row can't be read."""
    prediction: Prediction | None
    problem: BadRow | None = None
