"""The log of a run's events: what is appended is read back, whatever happens to the process that writes."""

import json
import random
from unittest import mock

import pytest

from studio.backend.runs.events import BLOCK, EventLog


@pytest.fixture
def log(tmp_path) -> EventLog:
    return EventLog(tmp_path / "events.jsonl")


def seqs(log: EventLog, after: int = 0) -> list[int]:
    return [event.seq for event in log.read(after)]


def test_events_are_read_back(log):
    assert seqs(log) == []
    first = log.append("log", 1, {"loss": 2.5, "text": "é\n"})
    log.append("done", 2, {})
    assert first.seq == 1 and next(log.read()) == first
    assert seqs(log) == [1, 2] and seqs(log, after=1) == [2] and seqs(log, after=2) == seqs(log, after=99) == []


def test_every_line_is_strict_json(log):
    log.append("log", 1, {"loss": float("nan"), "load": [float("inf"), (1.0, -float("inf"))]})
    line = json.loads(log.path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert line == {"seq": 1, "step": 1, "kind": "log", "values": {"loss": None, "load": [None, [1.0, None]]}}


def test_seq_goes_on_after_a_restart(log):
    log.append("log", 1, {})
    assert EventLog(log.path).append("log", 2, {}).seq == 2


@pytest.mark.parametrize("torn_lines", [1, 2, 3])
def test_a_torn_line_is_ignored_and_the_next_one_is_whole(log, torn_lines):
    log.append("log", 1, {})
    log.path.write_bytes(log.path.read_bytes() + b"\n".join([b'{"seq": 2, "step": 7, "ki'] * torn_lines))
    assert seqs(log) == [1]
    assert EventLog(log.path).append("log", 2, {"loss": 1.0}).seq == 2
    assert seqs(log) == [1, 2] and seqs(log, after=1) == [2]


def test_a_line_that_lacks_only_its_end_is_neither_lost_nor_doubled(log):
    log.append("log", 1, {})
    log.append("log", 2, {})
    log.path.write_bytes(log.path.read_bytes()[:-1])
    assert seqs(log) == [1]
    assert log.append("log", 3, {}).seq == 3
    assert seqs(log) == [1, 2, 3]


def test_a_torn_line_longer_than_a_block(log):
    log.append("log", 1, {})
    log.path.write_bytes(log.path.read_bytes() + b'{"seq": 2, "values": "' + b"x" * 3 * BLOCK)
    assert log.append("log", 2, {}).seq == 2 and seqs(log) == [1, 2]


def test_reading_from_the_middle_of_a_long_log_equals_reading_all(log):
    sizes = random.Random(0)
    lines = [
        json.dumps({"seq": seq, "step": seq, "kind": "log", "values": {"x": "y" * sizes.choice([1, 300, 40_000])}})
        for seq in range(1, 400)
    ]
    lines.insert(200, '{"seq": 201, "st')
    log.path.write_text("".join(line + "\n" for line in lines))
    for after in [0, 1, 57, 199, 200, 201, 398, 399, 400]:
        assert seqs(log, after) == list(range(after + 1, 400))


def test_reading_the_end_costs_little_however_long_the_log_is(log):
    line = '{"seq": %d, "step": 1, "kind": "log", "values": {"loss": 2.5}}\n'
    log.path.write_text("".join(line % seq for seq in range(1, 200_001)))
    with mock.patch("studio.backend.runs.events.json.loads", wraps=json.loads) as loads:
        assert seqs(log, after=199_990) == list(range(199_991, 200_001))
    assert loads.call_count < 3 * BLOCK / len(line)
