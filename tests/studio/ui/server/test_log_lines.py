"""Log lines of any logger: one line each, of a fair length."""

import io
import logging

import pytest

from studio.ui.server.log_lines import MARGIN, MOST, MOST_LINES, SafeRecord, safe


@pytest.fixture
def log(monkeypatch):
    """Return a function that logs like Gradio or uvicorn, and what it wrote."""
    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(SafeRecord)
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger = logging.getLogger("uvicorn.error")
    logger.addHandler(handler)
    yield lambda *args, **options: (logger.error(*args, **options), written.getvalue())[1]
    logger.removeHandler(handler)
    logging.setLogRecordFactory(before)


@pytest.mark.parametrize("text", ["a\nERROR: forged", "a\r\x1b[2Jb", "a\u2028b", "a\x85b", "a\u202eb", "a\x00b"])
def test_a_message_is_one_line_without_control_characters(log, text):
    line = log("no such path: %s", text)
    assert line.count("\n") == 1 and len(line.splitlines()) == 1 and line[:-1].isprintable()


def test_a_long_message_is_cut(log):
    assert len(log("%s", "x" * 4_000_000)) < MOST + 100


def test_the_lines_of_a_traceback_can_not_be_taken_for_others(log):
    try:
        raise ValueError("a\nERROR: forged\n" + "x\n" * 10_000 + "y" * 4_000_000)
    except ValueError:
        first, *lines = log("it failed", exc_info=True).splitlines()
    assert first == "ERROR: it failed" and "ValueError: a" in "".join(lines) and len(lines) <= MOST_LINES + 1
    assert all(line.startswith(MARGIN) and len(line) < MOST + 100 for line in lines)


def test_other_text_stays_as_it_is():
    assert safe("Käse 表 😀 “x”") == "Käse 表 😀 “x”"
