"""`classify predict`: documents, files, notices and what is refused, on a toy."""

import csv
import json
import os
import signal
from functools import partial

import pytest
from typer.testing import CliRunner

from studio.backend.classification import zero_shot as classify
from studio.cli.main import app
from studio.errors import StudioError
from tests.builders.toy_folder import classifier_folder, toy_folder

LABELS = ("--labels", "sport,science")


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> tuple[str, ...]:
    folder = toy_folder(tmp_path_factory.mktemp("models") / "toy")
    return ("--model", str(folder), "--precision", "fp32")


def classified(command: str, *arguments: str):
    result = CliRunner().invoke(app, ["classify", command, *arguments])
    if isinstance(result.exception, StudioError):
        raise result.exception
    assert result.exit_code == 0, result.exception
    return result


predict, evaluate = partial(classified, "predict"), partial(classified, "evaluate")


def file_of(tmp_path, text: str):
    path = tmp_path / "a.csv"
    path.write_text(text)
    return path


def test_json_of_a_text(toy):
    (document,) = json.loads(predict(*LABELS, *toy, "A draw.", "--json").stdout)
    assert set(document) == {"text", "label", "confidence", "scores"} and document["text"] == "A draw."
    assert set(document["scores"]) == {"sport", "science"} and sum(document["scores"].values()) == pytest.approx(1)
    assert document["confidence"] == document["scores"][document["label"]] == max(document["scores"].values())


def test_a_text_prints_every_label_the_likeliest_first(toy):
    lines = predict(*LABELS, *toy, "A draw.").stdout.splitlines()
    assert {line.split()[1] for line in lines} == {"sport", "science"}
    assert float(lines[0].split("%")[0]) >= float(lines[1].split("%")[0])


def test_a_file_becomes_a_file(toy, tmp_path):
    file = file_of(tmp_path, "id,text\n1,A draw.\n2,\n3,A planet.\n")
    result = predict(*LABELS, *toy, str(file))
    with (tmp_path / "a.labelled.csv").open(newline="") as written:
        rows = list(csv.DictReader(written))
    assert [row["id"] for row in rows] == ["1", "2", "3"] and rows[1]["label"] == "" and rows[0]["label"]
    assert "3 of 3 rows" in result.stdout and "line 3, column 'text': is empty" in result.stderr


def test_json_of_a_file_has_a_document_for_every_row(toy, tmp_path):
    file = file_of(tmp_path, "id,text\n1,A draw.\n2,\n3,A planet.\n")
    options = ("--no-calibrate", "--template", "Text: {text} Kind:")
    documents = json.loads(predict(*LABELS, *toy, str(file), "--json", *options).stdout)
    assert [document["text"] for document in documents] == ["A draw.", None, "A planet."]
    assert [document["label"] is None for document in documents] == [False, True, False]
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_an_encoding_is_chosen(toy, tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes("metin,label\nÇok güzel bir şehir,sport\n".encode("cp1254"))
    (found,) = json.loads(
        predict(*LABELS, *toy, str(file), "--json", "--column", "metin", "--encoding", "cp1254").stdout
    )
    assert found["text"] == "Çok güzel bir şehir"
    evaluate(*LABELS, *toy, str(file), "--column", "metin", "--encoding", "cp1254")
    with pytest.raises(StudioError, match="encoding must be one of"):
        predict(*LABELS, *toy, str(file), "--encoding", "latin")
    with pytest.raises(StudioError, match="--encoding only works with a file"):
        predict(*LABELS, *toy, "A draw.", "--encoding", "cp1254")


def test_json_and_out_write_both(toy, tmp_path):
    file = file_of(tmp_path, "body,n\nA draw.,1\n")
    out = tmp_path / "new.jsonl"
    result = predict(*LABELS, *toy, str(file), "--json", "--out", str(out), "--column", "body")
    assert json.loads(out.read_text())["label"] == json.loads(result.stdout)[0]["label"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("Hi",), "--labels spam,ham"),
        (("--labels", "spam", "Hi"), "'spam' is the only label"),
        ((*LABELS, "no_such.csv"), "There is no file no_such.csv"),
        ((*LABELS, "/tmp"), "is a folder"),
        ((*LABELS, "Hi", "--out", "x.csv"), "--out only works with a file"),
        ((*LABELS, "Hi", "--template", "nothing"), "no {text}"),
        ((*LABELS, "Hi", "--cut", "start"), "in the middle or at the end"),
        (("Hi", "--adapter", "3f2a", "--no-calibrate"), "not with a trained head"),
        ((*LABELS, "Hi", "--model", "nothing"), "There is no model 'nothing'"),
        ((*LABELS, "Hi", "--adapter", "zzz"), "neither the folder of a PEFT adapter"),
    ],
)
def test_what_can_be_mended_is_said(arguments, words):
    with pytest.raises(StudioError) as caught:
        predict(*arguments)
    assert words in str(caught.value)


def test_faults_of_a_file_are_said_before_a_model_is_loaded(tmp_path):
    file = file_of(tmp_path, "a,b\n1,2\n")
    for words, options in (("Which column", ()), ("exists already", ("--column", "a", "--out", str(file)))):
        with pytest.raises(StudioError, match=words):
            predict(*LABELS, str(file), "--model", "nothing", *options)


def test_a_long_text_is_a_text(toy):
    assert json.loads(predict(*LABELS, *toy, "word " * 1000, "--json").stdout)
    assert "cut in its middle" in predict(*LABELS, *toy, "word " * 1000).stderr


def test_a_trained_head_brings_its_labels(tmp_path):
    folder = classifier_folder(tmp_path / "head", ["ham", "spam"])
    file = file_of(tmp_path, "id,text\n1,Win cash.\n2,Tea?\n")
    documents = json.loads(predict("--adapter", folder, "--precision", "fp32", str(file), "--json").stdout)
    assert [set(document["scores"]) for document in documents] == [{"ham", "spam"}] * 2
    assert all(document["confidence"] == document["scores"][document["label"]] for document in documents)
    predict("--adapter", folder, "--precision", "fp32", str(file))
    assert (tmp_path / "a.labelled.csv").read_text().splitlines()[0] == "id,text,label,confidence,ham,spam"


def test_a_file_with_true_labels_is_measured(toy, tmp_path):
    file = file_of(tmp_path, "text,label\nA draw.,sport\nA planet.,science\nA cake.,food\n")
    report = json.loads(evaluate(str(file), *LABELS, *toy, "--json").stdout)
    assert report["rows"] == 2 and sum(map(sum, report["confusion"])) == 2
    found = [prediction["label"] for prediction in json.loads(predict(*LABELS, *toy, str(file), "--json").stdout)]
    assert report["systems"][0]["accuracy"] == (found[0] == "sport") / 2 + (found[1] == "science") / 2
    table = evaluate(str(file), *LABELS, *toy).stdout
    assert "This classifier" in table and "The most frequent label" in table and "does not have: 1" in table


def test_a_trained_head_is_measured_on_another_file(tmp_path):
    folder = classifier_folder(tmp_path / "head", ["ham", "spam"])
    file = file_of(tmp_path, "text,kind\nWin cash.,spam\nTea?,ham\n")
    options = ("--adapter", folder, "--precision", "fp32", "--label-column", "kind")
    assert json.loads(evaluate(str(file), *options, "--json").stdout)["labels"] == ["ham", "spam"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (LABELS, "Name a file with true labels"),
        ((*LABELS, "{file}", "--label-column", "kind"), "no column 'kind'. Pass --label-column with one of 'text'"),
        ((*LABELS, "no_such.csv"), "There is no file no_such.csv"),
        (("{file}",), "--labels spam,ham"),
    ],
)
def test_what_cannot_be_measured_is_said(arguments, words, tmp_path):
    file = str(file_of(tmp_path, "text,label\nA draw.,sport\n"))
    with pytest.raises(StudioError) as caught:
        evaluate(*(file if each == "{file}" else each for each in arguments))
    assert words in str(caught.value)


def test_ctrl_c_keeps_what_is_finished(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(classify, "TURN_TOKENS", 1)
    file = file_of(tmp_path, "text\n" + "A draw.\n" * 10)
    batch, turns = classify.ZeroShot._batch, []

    def interrupted(*arguments):
        turns.append(1)
        if len(turns) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return batch(*arguments)

    monkeypatch.setattr(classify.ZeroShot, "_batch", interrupted)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(StudioError, match="Stopped: 3 of 10 rows are finished"):
        predict(*LABELS, *toy, str(file))
    assert len((tmp_path / "a.labelled.csv").read_text().splitlines()) == 4
    assert signal.getsignal(signal.SIGINT) == before
