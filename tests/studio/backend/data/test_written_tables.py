"""Tables that pandas, the csv module, Excel or `datasets` wrote are read back cell for cell."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from studio.backend.data.encodings import OLDER
from studio.backend.data.rows import Row, Rows

datasets.disable_progress_bars()
FEW = settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
WORDS = [
    "null",
    "NaN",
    "None",
    "",
    " ",
    "a",
    'say "so"',
    "it's",
    "1986.",
    "0.0",
    "True",
    "a, b; c|d",
    "x\ny",
    "é",
    "中文",
]
WORDS += ["\u2028", "\u0085", "[1]", "{}", "<|im_end|>", "  two  ", "'", '"', "#", "\\", "sep=;", "=1+1"]
CELL = st.one_of(st.sampled_from(WORDS), st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8))


@st.composite
def tables(draw, cell=CELL):
    """Rows of two or three columns, none of which is blank or repeats the header."""
    names = ["prompt", "completion", "note, or more"][: draw(st.integers(2, 3))]
    row = st.fixed_dictionaries(dict.fromkeys(names, cell)).filter(
        lambda row: any(map(str.strip, row.values())) and list(row.values()) != names
    )
    return draw(st.lists(row, min_size=1, max_size=6))


def read(path: Path, encoding: str = "auto") -> list[dict]:
    found = list(Rows(path, encoding=encoding))
    assert all(isinstance(row, Row) for row in found), found
    return [row.cells for row in found]


def written(rows: list[dict], **options) -> str:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]), **options)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


@FEW
@given(rows=tables(), separator=st.sampled_from(",;|"), quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_csv_of_the_csv_module(tmp_path, rows, separator, quoting):
    path = tmp_path / "x.csv"
    path.write_text(written(rows, delimiter=separator, quoting=quoting), "utf-8", newline="")
    assert read(path) == rows


@FEW
@given(rows=tables(CELL.filter(lambda text: "\t" not in text)))
def test_tsv_of_excel(tmp_path, rows):
    path = tmp_path / "x.tsv"
    path.write_text(written(rows, dialect="excel-tab"), "utf-8-sig", newline="")
    assert read(path) == rows


@FEW
@given(rows=tables(CELL.map(lambda text: text.replace("\n", " ").replace("\t", " ").strip('"'))))
def test_tsv_without_quoting(tmp_path, rows):
    """As many programs write it: quotes inside of a text are text."""
    path = tmp_path / "x.tsv"
    lines = ["\t".join(rows[0]), *("\t".join(row[name] for name in rows[0]) for row in rows)]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    assert read(path) == rows


@FEW
@given(rows=tables(), separator=st.sampled_from(",;\t"))
def test_csv_of_pandas(tmp_path, rows, separator):
    path = tmp_path / "x.csv"
    pd.DataFrame(rows).to_csv(path, sep=separator, index=False)
    assume(separator != "\t" or not any("\t" in cell for row in rows for cell in row.values()))
    assert read(path) == rows


@FEW
@given(rows=tables(), layout=st.sampled_from(["records", "columns", "split", "index", "lines"]))
def test_json_of_pandas(tmp_path, rows, layout):
    path = tmp_path / ("x.jsonl" if layout == "lines" else "x.json")
    options = {"orient": "records", "lines": True} if layout == "lines" else {"orient": layout}
    pd.DataFrame(rows).to_json(path, **options)
    assert read(path) == rows


@FEW
@given(rows=tables(), indent=st.sampled_from([None, 2]))
def test_json_of_the_json_module(tmp_path, rows, indent):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=indent), "utf-8")
    assert read(path) == rows
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False, indent=indent) for row in rows), "utf-8")
    assert read(path) == rows


@settings(FEW, max_examples=4)
@given(rows=tables(), kind=st.sampled_from(["csv", "json", "parquet"]))
def test_files_of_datasets(tmp_path, rows, kind):
    path = tmp_path / f"x.{kind}"
    getattr(datasets.Dataset.from_list(rows), f"to_{kind}")(str(path))
    assert read(path) == rows


@settings(FEW, max_examples=2)
@given(rows=tables())
def test_parquet_of_pyarrow(tmp_path, rows):
    path = tmp_path / "x.parquet"
    table = pa.Table.from_pylist(rows)
    pq.write_table(table.set_column(0, table.column_names[0], table.column(0).dictionary_encode()), path)
    assert read(path) == rows


@pytest.mark.parametrize("encoding", OLDER)
def test_a_chosen_encoding_is_used(tmp_path, encoding):
    text = {"cp1251": "да", "koi8_r": "да", "cp1253": "ναι", "cp1255": "כן", "cp1256": "نعم"}.get(encoding, "ok")
    text = {"gb18030": "好", "big5": "好", "cp932": "はい", "euc_jp": "はい", "euc_kr": "네"}.get(encoding, text)
    path = tmp_path / "x.csv"
    path.write_bytes(f"prompt,completion\n{text},{text}\n".encode(encoding))
    assert read(path, encoding) == [{"prompt": text, "completion": text}]


TYPED = {
    "text": st.one_of(st.none(), CELL),
    "whole": st.one_of(st.none(), st.integers(-(2**53), 2**53)),
    "number": st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)),
    "flag": st.one_of(st.none(), st.booleans()),
    "day": st.one_of(st.none(), st.dates()),
}
TYPED_ROWS = st.lists(st.fixed_dictionaries(TYPED), min_size=1, max_size=6)


@FEW
@given(rows=TYPED_ROWS)
def test_numbers_dates_and_missing_values_in_json_lines(tmp_path, rows):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row, default=str) + "\n" for row in rows), "utf-8")
    assert read(path) == [{**row, "day": row["day"] and str(row["day"])} for row in rows]


@FEW
@given(rows=TYPED_ROWS)
def test_numbers_dates_and_missing_values_in_csv(tmp_path, rows):
    path = tmp_path / "x.csv"
    path.write_text(written([{"id": i, **row} for i, row in enumerate(rows)]), "utf-8", newline="")
    texts = [{name: "" if cell is None else str(cell) for name, cell in row.items()} for row in rows]
    assert read(path) == [{"id": str(i), **row} for i, row in enumerate(texts)]


@FEW
@given(rows=TYPED_ROWS)
def test_numbers_dates_and_missing_values_in_parquet(tmp_path, rows):
    types = {"text": pa.string(), "whole": pa.int64(), "number": pa.float64(), "flag": pa.bool_(), "day": pa.date32()}
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(list(types.items()))), tmp_path / "x.parquet")
    found = Rows(tmp_path / "x.parquet")
    assert [row.cells for row in found] == [{k: v for k, v in row.items() if k != "day"} for row in rows]
    assert found.notices == ["Columns without text were not read: day."]
