"""Compare what both libraries return for a row."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tests.benchmarks.compatibility.names import CRASH
from tests.benchmarks.compatibility.place import Refusal, Results
from tests.benchmarks.compatibility.registry import Row

EXPECTED = ".expected"
WORDS = 14


@dataclass(frozen=True)
class Outcome:
    """One line of the document."""

    row: Row
    stock: str
    ours: str
    bad: bool
    """Stock works, and ours differs or fails without a clear refusal."""
    detail: str = ""
    trace: str = ""


def compare(row: Row, stock: Results, ours: Results) -> Outcome:
    """Compare the results by name; where stock refuses, compare ours with what its name plus ".expected" holds."""
    largest, compared, refusals, problems, trace = 0.0, 0, [], [], ""
    if isinstance(whole := ours.get(""), Refusal) or "" in stock:
        names = sorted({"", *(ours if "" in stock else ())})
    else:
        names = sorted(name for name in stock.keys() | ours.keys() if not name.endswith(EXPECTED))
    for name in names:
        expected, one = stock.get(name), ours.get(name)
        if isinstance(one, Refusal):
            refusals.append(one)
            stock_refuses = expected if isinstance(expected, Refusal) else stock.get("")
            alike = isinstance(stock_refuses, Refusal) and stock_refuses.error == one.error != CRASH
            if one.claim or not (one.clear or alike):
                problems.append(f"{name or 'all'}: {one}")
                trace = trace or one.trace
            continue
        if isinstance(expected, Refusal) or "" in stock:
            expected = ours.get(name + EXPECTED)
            if name == "" or expected is None:
                continue
        if one is None or expected is None:
            problems.append(f"{name} is only in {'stock' if one is None else 'ours'}")
            continue
        distance = difference(expected, one)
        compared += 1
        largest = max(largest, distance)
        if not distance <= row.tolerance:
            problems.append(f"{name}: {distance:.1e}{_shapes(expected, one)}")
    return Outcome(
        row,
        _cell(stock),
        _ours_cell(largest, compared, refusals, problems, whole),
        bool(problems),
        "; ".join(problems[:4]),
        trace,
    )


def difference(expected: Tensor, one: Tensor) -> float:
    """Return the largest difference, relative to the largest value if it is a float; infinite for other shapes."""
    if expected.shape != one.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    if not expected.is_floating_point():
        return float((expected != one).sum())
    expected, one = expected.double(), one.double()
    finite = expected.isfinite()
    if not bool((finite == one.isfinite()).all()):
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    return float((expected - one)[finite].abs().max() / max(float(expected[finite].abs().max()), 1e-2))


def _shapes(expected: Tensor, one: Tensor) -> str:
    return "" if expected.shape == one.shape else f" ({tuple(expected.shape)} and {tuple(one.shape)})"


def _cell(stock: Results) -> str:
    refusals = [(name, one) for name, one in stock.items() if isinstance(one, Refusal)]
    if not refusals:
        return "works"
    name, refusal = refusals[0]
    return first_words(refusal) if name == "" else f"works; {name}: {first_words(refusal)}"


def _ours_cell(
    largest: float, compared: int, refusals: list[Refusal], problems: list[str], whole: Tensor | Refusal | None
) -> str:
    if isinstance(whole, Refusal):
        return first_words(whole)
    cell = f"{largest:.0e}" if compared else "works"
    if problems:
        return f"DEFECT, {'differs' if largest > 0 else 'fails'}: {problems[0]}"
    return f"{cell}; {first_words(refusals[0])}" if refusals else cell


def first_words(refusal: Refusal) -> str:
    words = str(refusal).split()
    text = " ".join(words[:WORDS]) + (" ..." if len(words) > WORDS else "")
    return text.replace("|", "\\|").replace("<", "&lt;")[:160]
