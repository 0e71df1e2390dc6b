"""The rows of the compatibility table that take no compiler: none is worse than unmodified transformers and PEFT."""

import pytest

from tests.benchmarks.compatibility.comparison import Outcome
from tests.benchmarks.compatibility.fast import FAST
from tests.benchmarks.compatibility.registry import all_rows
from tests.benchmarks.compatibility.run import run
from tests.builders.stock import run_stock  # noqa: F401  # puts the module into the group of comparisons with stock

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    return {outcome.row.key: outcome for outcome in run(all_rows()[key] for key in FAST)}


@pytest.mark.parametrize("key", FAST)
def test_no_worse_than_stock(outcomes, key):
    outcome = outcomes[key]
    assert not outcome.bad, f"{outcome.detail}\nstock: {outcome.stock}\nours: {outcome.ours}\n{outcome.trace}"


def test_the_table_has_many_rows():
    assert len(all_rows()) >= 120
