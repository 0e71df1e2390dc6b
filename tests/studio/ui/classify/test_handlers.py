"""What the classification tab does, with a toy model and no browser."""

import csv
import json
import math
import os
import time
from dataclasses import replace
from urllib.parse import unquote

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.testclient import TestClient

from studio.backend.chat.engine import Engine
from studio.backend.classification import evaluation
from studio.backend.classification.files import FileReport
from studio.backend.classification.label_prompt import MOST_LABELS, TEMPLATES
from studio.backend.classification.prediction import Prediction
from studio.backend.classification.zero_shot import LabelTask, ZeroShot
from studio.backend.data import uploads
from studio.backend.data.preview import preview
from studio.backend.recipe import Recipe
from studio.backend.runs.store import RunStore
from studio.backend.training import run as train
from studio.errors import StudioError
from studio.registry import discover
from studio.ui.classify import view
from studio.ui.classify.evaluation import view as evaluation_view
from studio.ui.classify.form import EXAMPLES, MAX_LINES, OWN, PRESETS, Form, read_form, split_texts, template_name
from studio.ui.classify.handlers import ALONE, ONE_BY_ONE, ClassifyHandlers
from studio.ui.common import downloads
from studio.ui.common.longest_text import MAX_TEXT
from studio.ui.common.trace_store import traces
from studio.ui.finetune.run_draft import from_handed
from studio.ui.server.identity import Identity
from tests.builders.toy_folder import toy_folder

FORM = Form("sport, science", TEMPLATES["topic"])
HOSTILE = "<img src=x onerror=window.__p=1>${window.__p=1}"


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    engine = Engine()
    engine.load(str(toy_folder(tmp_path_factory.mktemp("models") / "toy")), precision="fp32")
    return engine


@pytest.fixture
def handlers(engine, tmp_path, monkeypatch) -> ClassifyHandlers:
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    return ClassifyHandlers(engine)


@pytest.fixture
def brought(handlers, tmp_path):
    """Keeps a file of texts; returns the form that names it."""

    def bring(count=3, extra="", **changes) -> Form:
        file = tmp_path / "mäils.csv"
        file.write_text("id,body\n" + "".join(f"{i},Mail number {i}\n" for i in range(count)) + extra)
        taken = handlers.take(file)
        return Form(**{**FORM.kept(), "upload": taken.upload, "column": "body", **changes})

    return bring


def last(shown):
    *_, final = shown
    return final


def rows_of(result: str) -> list[dict[str, str]]:
    with downloads.labelled_file(result).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# --- the form


def test_a_form_survives_the_browser_and_junk_is_a_new_one():
    form = Form("a, b", "{text}?", True, True, "3f2a", "0" * 32, "x.csv", "mail", "kind")
    assert read_form(json.loads(json.dumps(form.kept()))) == form
    for junk in (None, "", [1], {"labels": 3, "calibrate": "yes", "by": None, "else": 1}):
        assert read_form(junk) == Form()


@pytest.mark.parametrize("name", ["labels", "template", "by", "upload", "file", "column", "true_column"])
def test_what_is_too_long_is_refused(name):
    with pytest.raises(StudioError, match="characters"):
        read_form({name: "x" * 20_000})


def test_texts_are_one_or_one_a_line():
    assert split_texts(" one\n\n two \n", one_a_line=False) == ["one\n\n two"]
    assert split_texts(" one\n\n two \n", one_a_line=True) == ["one", "two"]


@pytest.mark.parametrize("text", ["", " \n", None, 3, ["x"], "x" * (MAX_TEXT + 1), "x\n" * (MAX_LINES + 1)])
def test_texts_that_cannot_be_used_get_a_sentence(text):
    with pytest.raises(StudioError, match=r"\. "):
        split_texts(text, one_a_line=True)


def test_presets_and_examples_can_be_used_as_they_are():
    for each in (*PRESETS, *EXAMPLES):
        task = Form(each.labels, TEMPLATES[each.template]).task()
        assert len(task.labels) >= 2 and template_name(task.template) == each.template
    assert template_name("else: {text}") == OWN
    assert Form().task().labels == ("positive", "negative", "neutral")


# --- texts


def test_a_text_gets_the_shares_of_the_backend_and_its_routing(handlers, engine):
    text = "The match ended in a draw."
    (expected,) = ZeroShot(engine).predict([text], LabelTask(("sport", "science"), "topic"))
    first, *_, shown = handlers.classify(f" {text}\n", FORM, "me")
    assert "Classifying" in first.result
    for label, share in expected.scores.items():
        assert f">{label}</span>" in shown.result and f"{100 * share:.1f} %" in shown.result
    told = json.loads(shown.routing)
    trace = traces.get(told["id"])
    assert "".join(trace.texts) == text and told["total"] == len(trace) and trace.is_prompt.all()


def test_lines_are_a_table_without_routing(handlers):
    form = Form("sport, science", TEMPLATES["topic"], one_a_line=True)
    first, *_, shown = handlers.classify("one\ntwo\n\nthree", form, "me")
    assert json.loads(first.routing)["hint"] == ONE_BY_ONE and shown.routing is None
    assert shown.result.count("<tr>") == 1 + 3


def test_stop_keeps_what_is_classified(handlers):
    form = Form("sport, science", TEMPLATES["topic"], one_a_line=True)
    working = handlers.classify("one\ntwo", form, "me")
    next(working)
    with pytest.raises(StudioError, match="still being classified"):
        next(handlers.classify("three", form, "me"))
    assert "sport" in last(handlers.classify("three", FORM, "another")).result
    handlers.stop("me")
    assert "Stopped: 0 of 2" in last(working).result
    assert "sport" in last(handlers.classify("three", FORM, "me")).result, "the next one is not stopped"


def test_an_example_replaces_the_texts_that_are_being_classified(handlers):
    form = Form("sport, science", TEMPLATES["topic"], one_a_line=True)
    working = handlers.classify("one\ntwo", form, "me")
    next(working)
    handlers.stop("me", discard=True)
    example = handlers.classify("three", FORM, "me")
    next(example)
    assert list(working) == [] and handlers.is_busy("me"), "the first ones end without a word"
    assert "sport" in last(example).result and not handlers.is_busy("me")


def test_what_fails_leaves_no_text_that_says_it_goes_on(handlers):
    shown = []
    with pytest.raises(StudioError, match="leaves no room"):
        for each in handlers.classify("x", Form("a, b", "{text}" + "y" * 600), "me"):
            shown.append(each.result)
    assert shown[-1] == view.waiting()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"labels": "one"}, "only label"),
        ({"labels": ",".join(map(str, range(MOST_LABELS + 1)))}, "at most"),
        ({"labels": "a, A"}, "are the same"),
        ({"template": "no slot"}, "has no {text}"),
        ({"by": "../../etc"}, "deleted or belongs to another model"),
        ({"by": "0" * 32}, "deleted or belongs to another model"),
    ],
)
def test_bad_forms_get_a_sentence(handlers, changes, sentence):
    form = Form(**{**FORM.kept(), **changes})
    with pytest.raises(StudioError, match=sentence.replace("{", r"\{")):
        last(handlers.classify("x", form, "me"))


def test_no_text_or_label_is_html():
    scores = {HOSTILE: 0.75, "b": 0.25}
    one = Prediction(HOSTILE, HOSTILE, 0.75, scores, (HOSTILE,))
    report = FileReport(None, 1, "x", 1, notices=[HOSTILE])
    for html in (view.shown([one]), view.shown([one, one]), view.ended(report, HOSTILE, (), HOSTILE, "0" * 32),
                 view.earlier(HOSTILE, HOSTILE)):  # fmt: skip
        assert "<img" not in html and "&lt;img" in html


# --- a file


def test_a_file_is_labelled_and_downloaded(handlers, brought):
    form = brought(40, extra="99,\n")
    first, *between, shown = handlers.classify_file(form, "me")
    rows = rows_of(first.result)
    assert len(rows) == 41 and {"id", "body", "label", "confidence", "sport", "science"} == set(rows[0])
    assert rows[3]["body"] == "Mail number 3" and rows[3]["label"] in ("sport", "science") and not rows[40]["label"]
    assert all("progressbar" in each.html for each in between)
    assert "41 of 41 rows" in shown.html and "get no label: 1" in shown.html
    assert shown.html.count("Mail number") == 20, "the first rows"
    client = TestClient(Starlette(routes=downloads.routes(RunStore()), middleware=[Middleware(Identity)]))
    address = downloads.labelled_address(first.result)
    assert address in shown.html and address in handlers.earlier(first.result)
    answer = client.get(address)
    assert answer.status_code == 200 and answer.text.startswith("id,body,label,confidence")
    disposition = answer.headers["content-disposition"]
    assert disposition.startswith("attachment") and unquote(disposition).endswith("mäils.labelled.csv")


def test_only_classified_files_are_handed_out(handlers, brought):
    client = TestClient(Starlette(routes=downloads.routes(RunStore()), middleware=[Middleware(Identity)]))
    upload = brought().upload
    for result in (upload, "0" * 32, "..%2f..", "0" * 31 + "g", upload.upper()):
        assert client.get(downloads.labelled_address(result)).status_code == 404
        assert handlers.earlier(result) == ""
    assert handlers.earlier(None) == handlers.earlier(["x"]) == ""


def test_the_result_goes_with_the_uploads_a_day_later(handlers, brought):
    result = next(handlers.classify_file(brought(), "me")).result
    last(handlers.classify_file(brought(), "me"))
    folder = uploads._folder() / result
    assert folder.is_dir()
    os.utime(folder, (0, time.time() - uploads.UNUSED_S - 1))
    uploads.clean(RunStore())
    assert not folder.exists()


@pytest.mark.parametrize("how", ["cancel", "leave"])
def test_cancelling_and_leaving_end_the_work_and_keep_what_is_finished(handlers, brought, how):
    working = handlers.classify_file(brought(20_000), "me")
    result = next(working).result
    while "Mail number" not in next(working).html:
        pass
    if how == "cancel":
        handlers.stop_file("me")
        assert "Stopped: " in last(working).html
    else:
        working.close()
    rows = rows_of(result)
    assert 0 < len(rows) < 20_000 and all(row["label"] for row in rows)
    assert downloads.labelled_address(result) in handlers.earlier(result)
    assert rows_of(result) == rows, "nothing goes on"


def test_a_file_that_fails_says_why_and_leaves_nothing(handlers, brought):
    first, *_, shown = handlers.classify_file(brought(column="nothing"), "me")
    assert "no column &#x27;nothing&#x27;" in shown.html and "Download" not in shown.html
    assert downloads.labelled_file(first.result) is None and not (uploads._folder() / first.result).exists()


def test_a_file_that_is_gone_or_was_never_there_gets_a_sentence(handlers):
    for upload, sentence in [("", "Upload one"), ("0" * 32, "is gone"), ("../..", "is gone")]:
        with pytest.raises(StudioError, match=sentence):
            next(handlers.classify_file(Form("a, b", TEMPLATES["topic"], upload=upload), "me"))


def test_the_column_of_the_texts_is_found_or_asked_for(handlers, tmp_path):
    for header, column in [("id,Text", "Text"), ("Frage,Antwort", None), ("mail", "mail")]:
        file = tmp_path / "rows.csv"
        file.write_text(f"{header}\n" + ",".join("ab"[: header.count(",") + 1]) + "\n")
        taken = handlers.take(file)
        assert (taken.columns, taken.column) == (header.split(","), column)
        again = handlers.taken(Form(upload=taken.upload, file=taken.name, column=taken.columns[0]))
        assert again.column == taken.columns[0]
    assert handlers.taken(Form(upload="0" * 32)) is None and handlers.taken(Form()) is None


def test_the_encoding_of_a_file_is_chosen(handlers, tmp_path):
    file = tmp_path / "rows.csv"
    file.write_bytes("açık,kind\nÇok güzel bir şehir,sport\n".encode("cp1254"))
    taken = handlers.take(file)
    assert taken.columns == ["açýk", "kind"] and taken.encoding == "auto"
    form = Form(**{**FORM.kept(), "upload": taken.upload, "file": taken.name, "encoding": "cp1254"})
    decoded = handlers.decoded(form)
    assert (decoded.columns, decoded.encoding) == (["açık", "kind"], "cp1254") and handlers.taken(form) == decoded
    first, *_ = handlers.classify_file(replace(form, column="açık"), "me")
    assert rows_of(first.result)[0]["açık"] == "Çok güzel bir şehir"
    assert from_handed(replace(form, column="açık", true_column="kind").training_data()).encoding == "cp1254"
    with pytest.raises(StudioError, match="encoding must be one of"):
        handlers.decoded(replace(form, encoding="x"))


# --- how good it is


@pytest.fixture
def labelled(handlers, tmp_path):
    """Keeps a file of texts with their labels; returns the form that names both columns."""

    def bring(true, **changes) -> Form:
        file = tmp_path / "mails.csv"
        file.write_text("mail,kind\n" + "".join(f"Mail number {i},{label}\n" for i, label in enumerate(true)))
        named = {"upload": handlers.take(file).upload, "column": "mail", "true_column": "kind"}
        return Form(**{**FORM.kept(), **named, **changes})

    return bring


def test_a_file_with_true_labels_is_measured(handlers, labelled):
    form = labelled(["sport", "science"] * 20)
    first, *between, shown = handlers.classify_file(form, "me")
    right = sum(row["label"] == row["kind"] for row in rows_of(first.result))
    told = f"{100 * right / 40:.1f} %"
    assert f"Correct for {told} of 40 rows with a true label" in shown.html and "Download" in shown.html
    assert f"{ALONE} <small>measured on 40 rows of mails.csv" in shown.quality and told in shown.quality
    assert not any(each.quality for each in (first, *between))
    assert last(handlers.classify_file(labelled(["sport"], true_column=""), "me")).quality is None


@pytest.mark.parametrize(("labels", "sentence"), [(["ham"] * 3, "has a label of the classifier"),
                                                  ([""] * 3, "No row has a true label")])  # fmt: skip
def test_labels_that_measure_nothing_get_a_sentence_beside_the_download(handlers, labelled, labels, sentence):
    shown = last(handlers.classify_file(labelled(labels), "me"))
    assert sentence in shown.html and "3 of 3 rows" in shown.html and "Download" in shown.html
    assert shown.quality is None


def test_what_is_finished_of_a_cancelled_file_is_measured(handlers, labelled):
    working = handlers.classify_file(labelled(["sport", "science"] * 10_000), "me")
    result = next(working).result
    while "Mail number" not in next(working).html:
        pass
    handlers.stop_file("me")
    shown = last(working)
    assert f"of {len(rows_of(result)):,} rows with a true label" in shown.html and shown.quality


def test_the_texts_are_not_their_own_labels(handlers, labelled):
    with pytest.raises(StudioError, match="is the text column"):
        next(handlers.classify_file(labelled(["sport"], true_column="mail"), "me"))


def test_the_column_of_the_true_labels_is_found_or_none(handlers, tmp_path):
    for header, found in [("id,text,Category", "Category"), ("label,mail", "label"), ("a,b", ""), ("label", "")]:
        file = tmp_path / "rows.csv"
        file.write_text(f"{header}\n" + ",".join("xyz"[: header.count(",") + 1]) + "\n")
        taken = handlers.take(file)
        assert taken.true_column == found and taken.column not in taken.label_columns
        for kept in (found, "", "gone"):
            form = Form(upload=taken.upload, file=taken.name, true_column=kept)
            assert handlers.taken(form).true_column == (found if kept == found else "")


def test_an_obvious_column_of_texts_is_found_without_its_name(handlers, tmp_path):
    rows = [("The printer is on fire again", "hardware", "7"), ("I can't sign in since this morning", "access", "8")]
    for header, found in [("ticket,category,id", "ticket"), ("ticket,team,id", "ticket"), ("team,category,id", "team")]:
        file = tmp_path / "tickets.csv"
        file.write_text("\n".join([header, *map(",".join, rows)]))
        taken = handlers.take(file)
        assert (taken.column, taken.true_column) == (found, "category" if "category" in header else "")


def test_a_file_is_handed_over_to_be_trained_on(labelled):
    form = labelled(["sport", "science"] * 20)
    draft = from_handed(form.training_data())
    assert (draft.upload, draft.columns) == (form.upload, {"text": "mail", "label": "kind"})
    recipe = draft.recipe(["starter"])
    assert (recipe.task, recipe.format) == ("classify", "labelled") and not preview(recipe).problem
    for changes in ({"upload": ""}, {"true_column": ""}, {"true_column": "mail"}):
        with pytest.raises(StudioError, match="first"):
            Form(**{**form.kept(), **changes}).training_data()


# --- trained classifiers


def test_a_trained_classifier_labels_texts_and_files(handlers, engine, brought, labelled, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text(
        "".join(json.dumps({"text": f"Say {i}", "label": ["odd", "even"][i % 2]}) + "\n" for i in range(12))
    )
    settings = {
        "task": "classify", "model": engine.status().model_id, "data": str(data), "precision": "fp32", "max_length": 64,
        "max_steps": 2, "eval_steps": 2, "save_steps": 2, "packing": False, "eval_share": 0.25,
    }  # fmt: skip
    run = train.start(Recipe.from_settings(settings), "parity")
    assert any(identity == run.id and "trained classifier" in title for title, identity in handlers.choices())
    assert handlers.is_trained(run.id) and not handlers.is_trained("")
    form = Form("ignored", "ignored", by=run.id)
    shown = last(handlers.classify("Say 3", form, "me"))
    assert ">odd</span>" in shown.result
    trace = traces.get(json.loads(shown.routing)["id"])
    assert "".join(trace.texts) == "Say 3" and trace.is_prompt.all()
    first, *_ = handlers.classify_file(brought(3, by=run.id, labels="ignored"), "me")
    rows = rows_of(first.result)
    assert len(rows) == 3 and all(row["label"] in ("odd", "even") for row in rows)

    measured = handlers.quality(run.id)
    assert "parity" in measured and f"{evaluation.of_run(run)['rows']} held-out rows" in measured
    shown = last(handlers.classify_file(labelled(["odd", "even"], by=run.id, labels="ignored"), "me"))
    assert "of 2 rows with a true label" in shown.html
    assert "2 rows of mails.csv" in shown.quality and shown.quality.endswith(f"{measured}</details>")
    (run.folder / evaluation.FILE).unlink()
    assert evaluation_view.UNMEASURED[:60] in handlers.quality(run.id)
    (run.folder / evaluation.FILE).write_text("{")
    assert "evaluation.json of the run" in handlers.quality(run.id) and "is damaged" in handlers.quality(run.id)
    assert handlers.quality("") == handlers.quality("../..") == evaluation_view.waiting()


def test_numbers_and_several_labels_are_shown_as_such():
    number = Prediction("x", "3.142", math.nan, {"stars": 3.1415})
    assert "3.142" in view.shown([number]) and "%" not in view.shown([number]) + view.shown([number, number])
    none = Prediction("x", "", 0.2, {"a": 0.2, "b": 0.1})
    assert "No label fits" in view.shown([none]) and "20.0 %" in view.shown([none])


def test_the_tab_stands_between_chat_and_fine_tuning():
    assert [tab.id for tab in discover("studio.ui", "TAB", module="tab")][:3] == ["chat", "classify", "finetune"]
