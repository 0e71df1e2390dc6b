"""Whole files: what comes out for what goes in, bad rows, clashes, formulas, cancelling, failures, memory."""

from __future__ import annotations

import csv
import json
import threading
import tracemalloc

import pytest

from studio.backend.chat.engine import Engine
from studio.backend.classification.files import BATCH, SHOWN_BAD_ROWS, predict_file
from studio.backend.classification.prediction import Prediction
from studio.backend.classification.zero_shot import LabelTask, ZeroShot
from studio.errors import StudioError
from tests.builders.toy_folder import toy_folder

LABELS = ("odd", "even")


def by_length(texts):
    """Stands in for a model where only rows and files are looked at."""
    for text in texts:
        scores = {"odd": 0.75, "even": 0.25} if len(text) % 2 else {"odd": 0.25, "even": 0.75}
        label = max(scores, key=scores.get)
        yield Prediction(text, label, scores[label], scores)


def csv_rows(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def written(path, text: str):
    path.write_text(text)
    return path


def test_all_columns_stay_and_those_of_the_prediction_come(tmp_path):
    file = written(tmp_path / "a.csv", 'id,text,stars\n1,abc,5\n2,"a, b\nc!",4\n')
    report = predict_file(file, by_length, tmp_path / "out.csv", LABELS)
    assert csv_rows(tmp_path / "out.csv") == [
        {"id": "1", "text": "abc", "stars": "5", "label": "odd", "confidence": "0.75", "odd": "0.75", "even": "0.25"},
        {
            "id": "2",
            "text": "a, b\nc!",
            "stars": "4",
            "label": "odd",
            "confidence": "0.75",
            "odd": "0.75",
            "even": "0.25",
        },
    ]
    assert (report.rows, report.total, report.bad, report.cancelled) == (2, 2, 0, False)
    assert report.counts == {"odd": 2} and report.text_column == "text" and not report.notices


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_words_for_missing_values_stay_in_the_persons_own_columns(tmp_path, ending):
    words = ["null", "nan", "NaN", "NULL", "None", "n/a", ""]
    file = written(tmp_path / "a.csv", "text,code\n" + "".join(f"abc,{word}\n" for word in words))
    out = tmp_path / f"out.{ending}"
    predict_file(file, by_length, out, LABELS)
    rows = csv_rows(out) if ending == "csv" else [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["code"] for row in rows] == words


def test_escaped_formulas_are_counted(tmp_path):
    file = written(tmp_path / "a.csv", "text,code\nabc,=1+1\nabc,-5\n@you,+x\n")
    found = predict_file(file, by_length, tmp_path / "out.csv", LABELS)
    assert any("begin with an apostrophe now: 3" in notice for notice in found.notices)
    assert not predict_file(file, by_length, tmp_path / "out.jsonl", LABELS).notices


def test_a_file_is_read_in_the_chosen_encoding(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes("text\nÇok güzel bir şehir\n".encode("cp1254"))
    found = []
    predict_file(file, by_length, None, LABELS, each=found.append, encoding="cp1254")
    assert found[0].prediction.text == "Çok güzel bir şehir"


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl", "txt", "parquet"])
def test_every_kind_of_file_is_read(tmp_path, ending):
    import pyarrow as pa
    import pyarrow.parquet

    file = tmp_path / f"in.{ending}"
    contents = {
        "csv": "text,n\none,1\nfour,2\n",
        "tsv": "text\tn\none\t1\nfour\t2\n",
        "json": '[{"text": "one", "n": 1}, {"text": "four", "n": 2}]',
        "jsonl": '{"text": "one", "n": 1}\n{"text": "four", "n": 2}\n',
        "txt": "one\n\nfour\n",
    }
    if ending == "parquet":
        pyarrow.parquet.write_table(pa.table({"text": ["one", "four"], "n": [1, 2]}), file)
    else:
        file.write_text(contents[ending])
    predict_file(file, by_length, tmp_path / "out.jsonl", LABELS)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["text"], row["label"], row["confidence"]) for row in rows] == [
        ("one", "odd", 0.75),
        ("four", "even", 0.75),
    ]
    assert ending == "txt" or [int(row["n"]) for row in rows] == [1, 2]


def test_columns_that_come_late_and_nested_cells_are_kept(tmp_path):
    file = written(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": "bb", "extra": ["=1", 2], "no": NaN}\n')
    predict_file(file, by_length, tmp_path / "out.csv", LABELS)
    predict_file(file, by_length, tmp_path / "out.jsonl", LABELS)
    first, second = csv_rows(tmp_path / "out.csv")
    assert first["extra"] == "" and second["extra"] == '["=1", 2]' and second["no"] == ""
    last = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[-1], parse_constant=pytest.fail)
    assert last["extra"] == ["=1", 2] and last["no"] is None


def test_bad_rows_are_listed_and_keep_their_places(tmp_path):
    lines = ['{"text": "a", "id": 1}', "{", '{"text": " ", "id": 3}', '{"text": 7, "id": 4}', '{"text": "bb", "id": 5}']
    file = written(tmp_path / "a.jsonl", "\n".join(lines))
    report = predict_file(file, by_length, tmp_path / "out.jsonl", LABELS)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == ["odd", "", "", "", "even"]
    assert [row.get("id") for row in rows] == [1, None, 3, 4, 5]
    assert [row["confidence"] for row in rows] == [0.75, None, None, None, 0.75]
    assert report.bad == 3 and [bad.line for bad in report.bad_rows] == [2, 3, 4]
    assert "Fill it in" in str(report.bad_rows[1]) and "instead of text" in str(report.bad_rows[2])


def test_of_many_bad_rows_the_first_are_listed(tmp_path):
    file = written(tmp_path / "a.jsonl", '{"text": "a"}\n' * 101 + "{\n" * 100)
    report = predict_file(file, by_length, tmp_path / "out.csv", LABELS)
    assert report.bad == 100 and len(report.bad_rows) == SHOWN_BAD_ROWS and report.rows == 201


def test_names_that_are_taken_give_way_and_it_is_said(tmp_path):
    file = written(tmp_path / "a.csv", "text,label,even,label (predicted)\nabc,x,y,z\n")
    report = predict_file(file, by_length, tmp_path / "out.csv", LABELS)
    (row,) = csv_rows(tmp_path / "out.csv")
    assert row["label"] == "x" and row["even"] == "y" and row["label (predicted)"] == "z"
    assert row["label (predicted 2)"] == "odd" and row["even (predicted)"] == "0.25" and row["odd"] == "0.75"
    assert [notice.split("'")[1] for notice in report.notices] == ["label", "even"]


def test_a_label_may_be_called_label(tmp_path):
    def predict(texts):
        return [Prediction(text, "label", 0.9, {"label": 0.9, "text": 0.1}) for text in texts]

    predict_file(written(tmp_path / "a.csv", "text\nabc\nde\n"), predict, tmp_path / "out.csv", ("label", "text"))
    row = csv_rows(tmp_path / "out.csv")[0]
    assert row == {
        "text": "abc",
        "label": "label",
        "confidence": "0.9",
        "label (predicted)": "0.9",
        "text (predicted)": "0.1",
    }


def test_no_cell_is_a_formula(tmp_path):
    cells = ["=1+1", "+cmd", "-2+3", "@sum", "\tx", "\rx", "-1.5", "+3e4", "a=1", "-", "'x"]
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps({"text": cell, "=id": cell, "n": -1}) for cell in cells))

    def predict(texts):
        return [Prediction(text, "=x", 1.0, {"=x": 1.0, "y": 0.0}) for text in texts]

    predict_file(file, predict, tmp_path / "out.csv", ("=x", "y"), text_column="text")
    rows = csv_rows(tmp_path / "out.csv")
    safe = ["'=1+1", "'+cmd", "'-2+3", "'@sum", "'\tx", "'\rx", "-1.5", "+3e4", "a=1", "'-", "'x"]
    assert [row["text"] for row in rows] == [row["'=id"] for row in rows] == safe
    assert rows[0]["label"] == "'=x" and rows[0]["'=x"] == "1.0" and rows[0]["n"] == "-1"
    predict_file(file, predict, tmp_path / "out.jsonl", ("=x", "y"), text_column="text")
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])["text"] == "=1+1"


def test_the_text_column_is_found_or_asked_for(tmp_path):
    def column_of(header, **options):
        file = written(tmp_path / "a.csv", f"{header}\nabc,d\n")
        return predict_file(file, by_length, None, LABELS, **options).text_column

    assert column_of("id,Text") == "Text" and column_of("n,review") == "review"
    assert column_of("text,n", text_column="n") == "n"
    with pytest.raises(StudioError, match=r"Which column .* 'a', 'b'"):
        column_of("a,b")
    with pytest.raises(StudioError, match="no column 'c'; its columns are 'a', 'b'"):
        column_of("a,b", text_column="c")
    assert predict_file(written(tmp_path / "b.csv", "anything\nx\n"), by_length, None, LABELS).text_column == "anything"


def test_cancelling_keeps_what_is_finished(tmp_path):
    cancel = threading.Event()
    file = written(tmp_path / "a.csv", "text\n" + "abc\n" * 3 * BATCH)

    def predict(texts):
        for i, prediction in enumerate(by_length(texts)):
            if cancel.is_set():
                return
            yield prediction
            if i == 4:
                cancel.set()

    seen = []
    report = predict_file(file, predict, tmp_path / "out.csv", LABELS, cancel=cancel, each=seen.append)
    assert report.cancelled and report.rows == len(csv_rows(tmp_path / "out.csv")) == len(seen) == 5
    assert report.finished == f"5 of {3 * BATCH} rows are finished in out.csv."


@pytest.mark.parametrize("error", [StudioError("The model ran away."), ValueError("a bug")])
def test_a_failure_keeps_what_is_finished_and_says_how_many(tmp_path, error):
    file = written(tmp_path / "a.csv", "text\n" + "abc\n" * 3 * BATCH)
    calls = []

    def predict(texts):
        calls.append(texts)
        if len(calls) == 2:
            raise error
        return by_length(texts)

    with pytest.raises(type(error)) as caught:
        predict_file(file, predict, tmp_path / "out.csv", LABELS)
    said = f"{caught.value} {getattr(caught.value, '__notes__', '')}"
    assert str(error) in said and f"{BATCH} of {3 * BATCH} rows are finished in out.csv" in said
    assert len(csv_rows(tmp_path / "out.csv")) == BATCH


def test_a_failure_before_the_first_row_leaves_no_file(tmp_path):
    def predict(texts):
        raise StudioError("No model is loaded.")

    with pytest.raises(StudioError, match=r"^No model is loaded\.$"):
        predict_file(written(tmp_path / "a.csv", "text\nabc\n"), predict, tmp_path / "out.csv", LABELS)
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("name", "words"), [("out.xlsx", "neither"), ("no/out.csv", "can't be created"), ("a.csv", "exists already")]
)
def test_where_results_can_not_go_is_said_before_anything_is_predicted(tmp_path, name, words):
    file = written(tmp_path / "a.csv", "text\nabc\n")
    with pytest.raises(StudioError, match=words):
        predict_file(file, pytest.fail, tmp_path / name, LABELS)
    assert file.read_text() == "text\nabc\n"


def test_a_file_without_rows_is_refused(tmp_path):
    with pytest.raises(StudioError, match="no rows"):
        predict_file(written(tmp_path / "a.csv", "text\n"), by_length, tmp_path / "out.csv", LABELS)
    with pytest.raises(StudioError, match="no row that can be read"):
        predict_file(written(tmp_path / "a.jsonl", '{"text" 1}\n'), by_length, tmp_path / "out.csv", LABELS)


def test_progress_counts_rows(tmp_path):
    told = []
    file = written(tmp_path / "a.csv", "text\n" + "abc\n" * 50)
    predict_file(file, by_length, None, LABELS, progress=lambda fraction, text: told.append((fraction, text)))
    assert len(told) == 50 and told[-1] == (1.0, "50 of 50 rows") and told[0] == (0.02, "1 of 50 rows")


def test_memory_does_not_grow_with_the_file(tmp_path):
    def peak(count: int) -> int:
        file = tmp_path / f"{count}.csv"
        file.write_text("id,text\n" + "".join(f"{i},{'word ' * 100}{i}\n" for i in range(count)))
        tracemalloc.start()
        report = predict_file(file, by_length, tmp_path / f"out{count}.csv", LABELS)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert report.rows == count
        return size

    assert peak(10_000) < peak(500) + 100_000


def test_a_model_labels_a_file_and_says_what_was_cut(tmp_path):
    engine = Engine()
    engine.load(str(toy_folder(tmp_path / "toy")), precision="fp32")
    task = LabelTask(LABELS)
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in ("short", "long " * 200, "middling")))
    report = predict_file(file, lambda texts: ZeroShot(engine).predict(texts, task), tmp_path / "out.jsonl", LABELS)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert all(row["odd"] + row["even"] == pytest.approx(1, abs=1e-5) for row in rows)
    assert report.cut == 1 and "on line 2" in report.notices[0] and "in its middle" in report.notices[0]
