"""Some of the random schedules; `python -m tests.faults.schedules --count 200` runs more."""

import subprocess
import sys

import pytest


@pytest.mark.processes
def test_random_faults_lose_nothing():
    """Takes longer than five seconds, because whole runs are killed and resumed, in a process that forks them."""
    command = [sys.executable, "-m", "tests.faults.schedules", "--seed", "1", "--count", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 schedules" in done.stdout and "0 violations" in done.stdout
