"""Files as people have them, and files made to do harm: rows, listed bad rows or one sentence, in bounded memory."""

import gzip
import io
import json
import math
import re
import time
import tracemalloc
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from studio.backend.data.parquet_rows import ParquetRows
from studio.backend.data.rows import BadRow, Limits, Row, Rows
from studio.errors import StudioError

CSV = "prompt,completion\na,b\nc,d\n"
EXPECTED = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]


@pytest.fixture
def rows(tmp_path):
    """Reads content under a name: (rows, bad rows, notices)."""

    def read(name: str, content: str | bytes, **limits: int) -> tuple[list[Row], list[BadRow], list[str]]:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        reader = Rows(path, Limits(**limits))
        found = list(reader)
        good = [row for row in found if isinstance(row, Row)]
        return good, [row for row in found if isinstance(row, BadRow)], reader.notices

    return read


def cells(found: tuple[list[Row], list[BadRow], list[str]]) -> list[dict]:
    good, bad, notices = found
    assert not bad and not notices
    return [row.cells for row in good]


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", CSV),
        ("x.tsv", CSV.replace(",", "\t")),
        ("x.jsonl", "\n".join(map(json.dumps, EXPECTED))),
        ("x.json", json.dumps(EXPECTED)),
        ("x.json", json.dumps(EXPECTED, indent=2)),
        ("x.json", json.dumps({"version": {"n": [1]}, "data": EXPECTED, "by": "me"}, indent=1)),
        ("x.parquet", parquet(pa.Table.from_pylist(EXPECTED))),
        ("bom.csv", CSV.encode("utf-8-sig")),
        ("bom.csv", CSV.encode("utf-16")),
        ("bom.json", json.dumps(EXPECTED).encode("utf-8-sig")),
        ("crlf.csv", CSV.replace("\n", "\r\n")),
        ("crlf.csv", CSV.replace("\n", "\r")),
        ("crlf.jsonl", "\r\n\r\n".join(map(json.dumps, EXPECTED))),
        ("NO_END.CSV", CSV.strip()),
    ],
)
def test_every_type_gives_the_same_rows(rows, name, content):
    assert cells(rows(name, content)) == EXPECTED


def test_lines_are_those_of_the_file(rows):
    good, bad, _ = rows("x.csv", 'text,n\n"two\nlines",1\n\nlast,2\n')
    assert [(row.line, row.cells["text"]) for row in good] == [(2, "two\nlines"), (5, "last")] and not bad
    assert [row.line for row in rows("x.json", '[\n {"a": 1},\n\n {"a": "[,\\"{\\n"}\n]')[0]] == [2, 4]
    assert [row.line for row in rows("x.json", '[{"a": 1}, {"a": 2}]')[0]] == [1, 2]


def test_lines_after_a_stray_quote_are_rows_of_their_own(rows):
    """The broken record had swallowed them; they keep their line numbers."""
    good, bad, _ = rows("x.csv", 'text,n\n1,"two\nlines"x\nlast,2\n')
    assert [row.line for row in bad] == [2, 3] and [(row.line, row.cells["text"]) for row in good] == [(4, "last")]


def test_paragraphs_of_a_text(rows):
    good, bad, _ = rows("x.txt", "One,\ntwo.\n\n\n  Three\n")
    assert [(row.line, row.cells) for row in good] == [(1, {"text": "One,\ntwo."}), (5, {"text": "Three"})] and not bad


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("x.csv", "\n".join(map(json.dumps, EXPECTED)), "jsonl"),
        ("x.txt", json.dumps(EXPECTED), "json"),
        ("x.jsonl", json.dumps(EXPECTED, indent=1), "json"),
        ("x.json", "\n".join(map(json.dumps, EXPECTED)), "jsonl"),
        ("x.json", CSV, "csv"),
        ("x.csv", CSV.replace(",", "\t"), "tsv"),
        ("x.txt", CSV.replace(",", "\t"), "tsv"),
        ("x.parquet", CSV, "csv"),
        ("x.csv", parquet(pa.Table.from_pylist(EXPECTED)), "parquet"),
        ("x", CSV, "csv"),
    ],
)
def test_a_wrong_ending_is_told(rows, name, content, kind):
    good, bad, notices = rows(name, content)
    assert [row.cells for row in good] == EXPECTED and not bad
    assert notices == [f"{name} was read as {kind}, based on its content."]


def test_semicolons_of_a_spreadsheet(rows):
    good, _, notices = rows("x.csv", CSV.replace(",", ";"))
    assert [row.cells for row in good] == EXPECTED and notices == ["Columns are separated by ';'."]


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("x.csv"), CSV)  # at a fixed time: names of tests are made of it
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("x.csv", b"", "is empty"),
        ("x.csv", b"\xef\xbb\xbf \r\n", "is empty"),
        ("x.csv", b"prompt,completion\r\n", "no rows"),
        ("x.jsonl", b"\n\n", "is empty"),
        ("x.json", b"[]", "no rows"),
        ("x.json", b'{"a": {"b": "no list"}, "c": 1}', "no lists of rows"),
        ("x.json", b'{"a": [{"x": 1}], "b": [{"x": 1}]}', "2 lists of rows"),
        ("x.json", b'[{"a": 1}, {"a": 2}', "line 1 never ends"),
        ("x.json", b"Dear diary", "no lists of rows"),
        ("x.csv", zipped(), "zip archive"),
        ("x.csv", gzip.compress(CSV.encode(), mtime=0), "gzip archive"),
        ("x.csv", b"%PDF-1.7", "PDF"),
        ("x.csv", bytes(range(256)) * 9, "not a text file"),
        ("x.csv", CSV.encode("utf-16-le"), "not a text file"),
        ("x.csv", CSV.encode("utf-16") + b"\n", "not valid UTF-16"),
        ("x.parquet", b"hello", "not a parquet file"),
        ("x.parquet", b"PAR1 and more", "not a valid parquet file"),
        ("x.csv", "text,n,text\na,1,b\n", "'text' occurs twice"),
        ("x.csv", b'"text\na', "column names"),
        ("x.parquet", parquet(pa.table([["a"], ["b"]], names=["t", "t"])), "'t' occurs twice"),
    ],
)
def test_one_sentence(rows, name, content, sentence):
    with pytest.raises(StudioError, match=sentence):
        rows(name, content)


@pytest.mark.parametrize("name", ["missing.csv", ".", "x" * 300, "nul\0.csv"])
def test_no_file(tmp_path, name):
    with pytest.raises(StudioError):
        Rows(tmp_path / name)


def test_a_device_is_no_file():
    with pytest.raises(StudioError, match="no file"):
        Rows(Path("/dev/zero"))


def test_windows_1252_is_announced(rows):
    good, bad, notices = rows("x.csv", "text\ncafé “ok”\n".encode("cp1252"))
    assert good[0].cells == {"text": "café “ok”"} and not bad
    assert "Windows-1252" in notices[0]


def test_mixed_encodings_are_bad_rows(rows):
    good, bad, notices = rows("x.csv", "text\ncafé\n".encode() + "thé\n".encode("cp1252") + "über\n".encode())
    assert [row.cells["text"] for row in good] == ["café", "über"] and not notices
    assert [(row.line, row.column) for row in bad] == [(3, "text")] and "not valid text" in bad[0].reason


@pytest.mark.parametrize(
    ("name", "content", "line", "column", "reason"),
    [
        ("x.csv", "a,b\n1,2\n3\n4,5\n", 3, "", "1 cells where the header has 2"),
        ("x.csv", "a,b\n1,2\n3,4,5\n4,5\n", 3, "", "3 cells"),
        ("x.csv", 'a,b\n1,2\n"3,4\n4,5\n', 3, "", "quote"),
        ("x.csv", 'a,b\n1,2\n"3"x,4\n4,5\n', 3, "", "quote"),
        ("x.csv", "a,b\n1,2\n3,\0\n4,5\n", 3, "b", "NUL"),
        ("x.csv", "a,b\n1,2\n3," + "x" * 101 + "\n4,5\n", 3, "b", "101 characters"),
        ("x.csv", "a,b\n1,2\n3," + "x" * 2000 + "\n4,5\n", 3, "", "longer than 1,000"),
        ("x.jsonl", '{"a": 1}\n{"a": }\n{"a": 2}', 2, "", "not valid JSON"),
        ("x.jsonl", '{"a": 1}\n[1]\n{"a": 2}', 2, "", "not a JSON object"),
        ("x.jsonl", '{"a": 1}\n{"a": 1, "a": 2}\n{"a": 2}', 2, "", "a key twice"),
        ("x.csv", "a,b\n1,2\n3,4\n" + '5,"6', 4, "", "quote"),
        ("x.jsonl", '{"a": 1}\n{"a": ' + "[" * 90 + "]" * 90 + "}\n" + '{"a": 2}', 2, "", "deeper than 32"),
        ("x.jsonl", '{"a": 1}\n{"a": "\\ud800"}\n{"a": 2}', 2, "a", "not valid text"),
        ("x.jsonl", '{"a": 1}\n{"a": "' + "x" * 2000 + '"}\n{"a": 2}', 2, "", "longer than 1,000"),
        ("x.json", '[{"a": 1},\n{"a": },\n{"a": 2}]', 2, "", "not valid JSON"),
        ("x.json", '[{"a": 1},\n,{"a": 2}]', 2, "", "not valid JSON"),
        ("x.json", '[{"a": 1},\n{"a": "' + "x" * 2000 + '"},\n{"a": 2}]', 2, "", "longer than 1,000"),
        ("x.txt", "one\n\n" + "x" * 101 + "\n\nthree", 3, "text", "101 characters"),
        ("x.txt", "one\n\n" + "x" * 9999 + "\n\nthree", 3, "", "longer than 1,000"),
    ],
)
def test_bad_rows_are_listed_and_the_rest_is_read(rows, name, content, line, column, reason):
    good, bad, _ = rows(name, content, cell_characters=100, line_characters=1000)
    assert len(good) == 2 and len(bad) == 1
    assert (bad[0].line, bad[0].column) == (line, column)
    assert re.search(reason, bad[0].reason) and bad[0].remedy


def test_a_number_of_many_digits_is_a_bad_row(rows):
    good, bad, _ = rows("x.jsonl", '{"a": ' + "9" * 5000 + "}")
    assert not good and "not valid JSON" in bad[0].reason


def test_nothing_of_a_record_that_is_too_long_is_dropped_unsaid(rows):
    good, bad, _ = rows("x.csv", 'a,b\n1,2\n3,"' + "x\n" * 600 + '"\n4,5\n', line_characters=1000)
    assert [row.cells["a"] for row in good] == ["1", "4"]
    assert "longer than 1,000" in bad[0].reason and bad[-1].line == 603


def test_rows_after_a_quote_that_is_never_closed_are_read(rows):
    good, bad, _ = rows("x.csv", 'a,b\n1,2\n"3,4\n' + "5,6\n" * 1000, line_characters=1000)
    assert len(good) == 1001 and [(row.line, row.column) for row in bad] == [(3, "")]
    assert "a quote that is not closed" in bad[0].reason and "lines is longer than 1,000" in bad[0].reason


def test_quotes_that_swallow_from_each_line_take_little_time(rows):
    before = time.process_time()
    _, bad, _ = rows("x.csv", "a,b\n1,2\n" + 'x","\n' * 5000, line_characters=20_000)
    assert bad and time.process_time() - before < 0.4


def test_the_rows_of_a_document_are_counted(tmp_path):
    """It is read as a whole, so its place in the file says nothing."""
    path = tmp_path / "x.json"
    path.write_text(json.dumps({name: {str(i): "x" for i in range(5000)} for name in ("prompt", "completion")}))
    reader = Rows(path)
    next(iter(reader))
    assert reader.total(1) == 5000


def test_nan_and_null_cells(rows):
    good, _, _ = rows("x.csv", "a,b\nNaN,\nnull,x\n")
    assert [row.cells for row in good] == [{"a": "NaN", "b": ""}, {"a": "null", "b": "x"}]
    good, _, _ = rows("x.jsonl", '{"a": NaN}\n{"a": null}\n')
    assert math.isnan(good[0].cells["a"]) and good[1].cells == {"a": None}
    good, _, _ = rows("x.parquet", parquet(pa.table({"a": [float("nan"), None]})))
    assert math.isnan(good[0].cells["a"]) and good[1].cells == {"a": None}


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[{" * 50_000, '[{"a":' + "[" * 99_999])
@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.csv"])
def test_deep_nesting_is_a_sentence(rows, name, text):
    try:
        good, _, _ = rows(name, text + "\n")
    except StudioError:
        return
    assert name == "x.csv" or not good


@pytest.mark.parametrize("name", ["x.csv", "x.json", "x.jsonl", "x.txt", "x.parquet"])
def test_too_many_rows_end_with_a_notice(rows, name):
    many = [{"a": str(i)} for i in range(50)]
    content = {
        "x.csv": "a\n" + "\n".join(row["a"] for row in many),
        "x.json": json.dumps(many),
        "x.jsonl": "\n".join(map(json.dumps, many)),
        "x.txt": "\n\n".join(row["a"] for row in many),
        "x.parquet": parquet(pa.Table.from_pylist(many)),
    }[name]
    good, bad, notices = rows(name, content, rows=20)
    assert len(good) == 20 and not bad and "first 20 rows" in notices[0]


def test_too_many_bytes_and_columns(rows):
    with pytest.raises(StudioError, match="the limit is 10"):
        rows("x.csv", CSV, file_bytes=10)
    with pytest.raises(StudioError, match="3 columns"):
        rows("x.csv", "a,b,c\n1,2,3\n", columns=2)
    assert "3 columns" in rows("x.jsonl", '{"a": 1, "b": 2, "c": 3}', columns=2)[1][0].reason


@pytest.mark.parametrize("name", ["x.csv", "x.json", "x.jsonl", "x.txt"])
def test_a_very_long_line_does_not_fill_the_memory(tmp_path, name):
    path = tmp_path / name
    with path.open("w") as file:
        file.write({"x.json": '[{"a": "', "x.jsonl": '{"a": "', "x.csv": "a\n", "x.txt": ""}[name])
        for _ in range(300):
            file.write("x" * 100_000)
        file.write({"x.json": '"}]', "x.jsonl": '"}', "x.csv": "\n", "x.txt": "\n"}[name])
    tracemalloc.start()
    found = list(Rows(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [type(row) for row in found] == [BadRow] and "longer than 1,000,000" in found[0].reason
    assert peak < 10_000_000


def test_a_small_parquet_file_that_unpacks_to_much_is_refused(tmp_path):
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 500, pa.int32()), pa.array(["z" * 10_000_000]))
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": texts}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 100_000
    with pytest.raises(StudioError, match="unpacks to more"):
        list(Rows(path, Limits(file_bytes=20_000_000)))


def test_a_reader_of_parquet_ends_with_the_rows(rows, tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(parquet(pa.Table.from_pylist([{"a": "x" * 1000}] * 5000)))
    with ParquetRows(path, 10_000_000) as file:
        next(iter(file))
    assert file.process.returncode is not None


def test_parquet_columns_without_text_are_named(rows):
    table = pa.table({"a": ["x"], "image": [b"\x89PNG"], "turns": [[{"role": "user", "n": 1}]]})
    good, _, notices = rows("x.parquet", parquet(table))
    assert good[0].cells == {"a": "x", "turns": [{"role": "user", "n": 1}]} and "image" in notices[0]


def test_bad_limits_are_named_at_once():
    with pytest.raises(StudioError, match=r"rows is 0: .*; depth is 1000"):
        Limits(rows=0, depth=1000)


BITS = [
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\n",
    b"\r",
    b"\t",
    b"\0",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"PAR1",
]
BITS += [b'{"a": 1}', b'[{"a": ', b"1e999", b"NaN", b"a,b\n", "é".encode(), b"\xe9", b"\\ud800", b" ", b"x"]


@pytest.mark.parametrize("name", ["x.csv", "x.json", "x.jsonl", "x.parquet", "x.txt"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(BITS), max_size=40).map(b"".join)))
def test_any_bytes_are_read_or_refused(rows, name, content):
    try:
        rows(name, content, line_characters=50, cell_characters=20, depth=4)
    except StudioError as error:
        assert str(error)


WHOLE = parquet(pa.table({"a": ["x", None] * 5, "m": [[{"role": "user", "content": "y"}]] * 10, "n": [1.5] * 10}))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, len(WHOLE) - 1), byte=st.integers(0, 255), end=st.integers(0, len(WHOLE)))
def test_a_damaged_parquet_file_is_read_or_refused(rows, at, byte, end):
    for content in (WHOLE[:at] + bytes([byte]) + WHOLE[at + 1 :], WHOLE[:end]):
        try:
            rows("x.parquet", content)
        except StudioError as error:
            assert str(error)
