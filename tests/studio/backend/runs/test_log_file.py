"""The log of a run, read part by part."""

from studio.backend.runs.log_file import PART, read_log


def test_a_log_is_read_from_where_the_last_part_ended(tmp_path):
    log = tmp_path / "log.txt"
    assert read_log(log) == ("", 0, 0, 0)
    log.write_text("one\ntwo\nthr")
    part = read_log(log, has_ended=False)
    assert (part.text, part.start) == ("one\ntwo\n", 0)
    with log.open("a") as file:
        file.write("ee\n")
    assert read_log(log, part.next, has_ended=False).text == "three\n"
    assert read_log(log, 14).text == ""


def test_a_long_log_begins_with_a_whole_line_of_its_end(tmp_path):
    log = tmp_path / "log.txt"
    lines = [f"line {number} é" for number in range(50_000)]
    log.write_text("\n".join(lines) + "\n", encoding="utf-8")
    end = read_log(log)
    assert end.start > 0 and end.text.splitlines() == lines[-len(end.text.splitlines()) :]
    read, after = "", 0
    while (part := read_log(log, after, has_ended=False)).text:
        read, after = read + part.text, part.next
    assert read == log.read_text(encoding="utf-8")


def test_a_log_that_was_written_anew_is_read_from_its_start(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("new\n")
    assert read_log(log, 1000).text == "new\n"


def test_a_line_without_an_end_is_read_in_parts(tmp_path):
    log = tmp_path / "log.txt"
    log.write_bytes(b"x" * (PART + 5))
    first = read_log(log, 0, has_ended=False)
    assert first.next == PART and read_log(log, first.next, has_ended=False).text == ""
    assert read_log(log, first.next).text == "xxxxx"
