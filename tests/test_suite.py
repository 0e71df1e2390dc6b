"""The suite's own rules: tests wait for events, groups stay together, and every fault can still be put in."""

import subprocess
import tokenize
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = [path for path in HERE.rglob("*.py") if path.relative_to(HERE).parts[0] != "benchmarks"]
# Pictures and times for the README, and the one loop that waits for a condition.
MAY_SLEEP = {"builders/waiting.py", "e2e/journey.py", "e2e/screenshot.py", *(
    f"faults/schedules/{name}.py" for name in ("faults", "processes", "schedule")  # whose faults have their times
)}  # fmt: skip


def test_nothing_sleeps_to_be_in_step():
    sleeping = [
        f"{path.relative_to(HERE)}: {call}"
        for path in SOURCES
        if str(path.relative_to(HERE)) not in MAY_SLEEP
        for call in ("time.sleep", "wait_for_timeout")
        if call in code(path)
    ]
    assert not sleeping, "use tests.builders.waiting.until, or expect of Playwright"


def code(path: Path) -> str:
    """The source without strings and comments, which hold the code of child processes."""
    with tokenize.open(path) as file:
        tokens = tokenize.generate_tokens(file.readline)
        return "".join(token.string for token in tokens if token.type in (tokenize.NAME, tokenize.OP))


def test_a_module_is_one_group(request: pytest.FixtureRequest):
    """Where pytest-xdist does not find the groups, modules are torn apart and every fixture is made twice, unseen."""
    if not hasattr(request.config, "workerinput"):
        pytest.skip("runs without workers")
    assert request.node.nodeid.endswith("@tests/test_suite.py")


@pytest.mark.parametrize("fault", sorted((HERE / "faults").glob("*/*.patch")), ids=lambda path: path.stem)
def test_a_fault_can_still_be_put_in(fault: Path):
    """`python -m tests.faults` puts it in and runs the tests that catch it."""
    first, *_ = fault.read_text(encoding="utf-8").splitlines()
    assert (HERE.parent / first.removeprefix("Caught by: ").split()[0].partition("::")[0]).is_file()
    checked = subprocess.run(["git", "apply", "--check", fault], cwd=HERE.parent, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
