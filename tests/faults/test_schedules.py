"""One of the random schedules; `python -m tests.faults.schedules --count 200` runs more."""

import subprocess
import sys

import pytest


@pytest.mark.processes
def test_random_faults_lose_nothing():
    """Trainer and server are killed, and the newest checkpoint is damaged.

    Takes longer than five seconds, because a whole run is trained twice, in a process that forks its trainers.
    """
    command = [sys.executable, "-m", "tests.faults.schedules", "--seed", "6961", "--count", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "faults: 2, violations: 0" in done.stdout
