"""A process of its own: what it inherits and what it leaves to others."""

import os
import signal
from pathlib import Path

import psutil
import pytest

from studio.backend.system import process as child
from tests.builders.waiting import until

WAITS = "import time; print('here', flush=True); time.sleep(60)"


@pytest.fixture
def waiting(tmp_path):
    process = child.spawn(["-c", WAITS], tmp_path / "log")
    yield process
    child.end_group(process.pid, signal.SIGKILL)
    process.wait()


def test_it_leaves_the_processor_to_answers(waiting):
    assert psutil.Process(waiting.pid).nice() == max(os.nice(0), child.NICENESS)
    share = Path(f"/proc/{waiting.pid}/autogroup")
    if share.exists():
        assert share.read_text().split()[-1] == str(child.NICENESS), "its session gets as much as the server's"


def test_its_output_goes_to_the_log_and_it_has_a_group_of_its_own(waiting, tmp_path):
    until(lambda: (tmp_path / "log").read_text() == "here\n")
    assert os.getpgid(waiting.pid) == waiting.pid != os.getpgid(0)


def test_it_keeps_its_memory_small_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    environment = child.environment()
    assert environment["MALLOC_ARENA_MAX"] == "1" and environment["MALLOC_TRIM_THRESHOLD_"] == "1"


def test_it_keeps_the_choice_of_compilers_and_libraries(monkeypatch):
    kept = {"CC": "gcc-12", "CXX": "g++-12", "BNB_CUDA_VERSION": "130", "CUDA_VISIBLE_DEVICES": "1"}
    for name, value in {**kept, "HF_TOKEN": "hf_secret"}.items():
        monkeypatch.setenv(name, value)
    environment = child.environment()
    assert kept.items() <= environment.items() and "HF_TOKEN" not in environment
