"""The rows, in the order of the document."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module

from tests.benchmarks.compatibility.place import Place, Results

MODULES = (
    "tuners", "lora_options", "adapter_operations", "training", "trl", "generation", "models", "loading",
    "heads_and_pipelines", "execution", "hooks", "compilers",
)  # fmt: skip
TOLERANCE = 1e-5
LIMIT = 120
"""Seconds of the processor that a row may take. Other work on the machine does not count."""


@dataclass(frozen=True)
class Row:
    group: str
    name: str
    run: Callable[[Place], Results]
    tolerance: float
    """Largest difference, relative to the largest value of a tensor (of at least 0.01)."""
    four_bits: bool
    limit: int

    @property
    def key(self) -> str:
        return f"{self.group}: {self.name}"


ROWS: dict[str, Row] = {}


def row(
    group: str, name: str, *, tolerance: float = TOLERANCE, four_bits: bool = False, limit: int = LIMIT
) -> Callable[[Callable[[Place], Results]], Callable[[Place], Results]]:
    """Register a function as a row; with `four_bits`, also as a row on 4-bit experts."""

    def register(run: Callable[[Place], Results]) -> Callable[[Place], Results]:
        for bits in (False, True)[: 1 + four_bits]:
            made = Row(group, name + ", on 4-bit experts" * bits, run, tolerance, bits, limit)
            assert made.key not in ROWS, made.key
            ROWS[made.key] = made
        return run

    return register


@cache
def all_rows() -> dict[str, Row]:
    for module in MODULES:
        import_module(f"tests.benchmarks.compatibility.rows.{module}")
    return ROWS
