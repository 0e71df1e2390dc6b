"""Labelled rows: what a cell's label is, what can't be told apart, and a split in which every label has its share."""

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.backend.data.dataset import Dataset, DataSettings, read
from studio.backend.data.examples import Example, Examples
from studio.backend.data.labelled import LabelledRows, Labels, read_labelled, shown
from studio.backend.data.preview import preview
from studio.backend.data.text_prompt import encode
from studio.backend.recipe import Recipe
from studio.errors import StudioError
from tests.builders.toy_folder import toy_tokenizer

NAN = float("nan")


@pytest.fixture
def rows_of(tmp_path):
    """Reads rows of (text, label), or of any columns, from a file."""

    def read_rows(rows: list, **changes) -> LabelledRows:
        file = tmp_path / "rows.jsonl"
        dicts = [row if isinstance(row, dict) else {"text": row[0], "label": row[1]} for row in rows]
        file.write_text("\n".join(map(json.dumps, dicts)))
        return read_labelled(recipe(file, **changes))

    return read_rows


def recipe(file: Path, **changes) -> Recipe:
    return Recipe.from_settings({"task": "classify", "packing": False, "data": str(file), **changes})


# --- what a cell says


def test_labels_are_sorted_and_targets_are_their_places(rows_of):
    found = rows_of([("a", "pear"), ("b", " apple "), ("c", "pear")])
    assert found.names == ("apple", "pear") and found.targets == [1, 0, 1] and not found.dataset.bad_rows
    assert found.dataset.format == "labelled" and shown(found.labels, 1) == "pear"


def test_numbers_become_names_in_the_order_of_their_size(rows_of):
    found = rows_of([("a", 10), ("b", 2), ("c", 2.0), ("d", True)])
    assert found.names == ("10", "2", "true") and found.targets == [0, 1, 1, 2]
    assert rows_of([("a", 10), ("b", 2), ("c", "-1.5")]).names == ("-1.5", "2", "10")


@pytest.mark.parametrize("cell", [["red", "blue"], "red;blue", "red | blue", "blue;red;blue", ["red|blue"]])
def test_several_labels_are_a_list_or_joined(rows_of, cell):
    found = rows_of([("a", cell), ("b", "red"), ("c", []), ("d", "green")], problem="multi_label")
    assert found.names == ("blue", "green", "red") and found.targets == [(0, 2), (2,), (), (1,)]
    assert shown(found.labels, (0, 2)) == "blue | red" and shown(found.labels, ()) == "no label"


def test_numbers_to_estimate(rows_of):
    found = rows_of([{"review": "a", "score": 1}, {"review": "b", "score": "2.5"}], problem="regression")
    assert found.names == ("score",) and found.targets == [1.0, 2.5] and shown(found.labels, 2.5) == "2.5"


@pytest.mark.parametrize(
    ("row", "problem", "column", "reason"),
    [
        (("", "x"), "single_label", "text", "is empty"),
        ((None, "x"), "single_label", "text", "is empty"),
        (("a", None), "single_label", "label", "is empty"),
        (("a", NAN), "single_label", "label", "is empty"),
        (("a", "  "), "single_label", "label", "is empty"),
        (("a", ["x", None]), "multi_label", "label", "is empty"),
        (("a", {"x": 1}), "single_label", "label", "holds dict"),
        (("a", ["x", "y"]), "single_label", "label", "holds 2 labels"),
        (("a", []), "single_label", "label", "holds 0 labels"),
        (("a", "x" * 201), "single_label", "label", "has 201 characters"),
        (("a", "many"), "regression", "label", "is 'many', which is not a number"),
        (("a", "inf"), "regression", "label", "not a number"),
        (("a", None), "regression", "label", "is empty"),
    ],
)
def test_rows_that_can_not_be_used_are_listed(rows_of, row, problem, column, reason):
    found = rows_of([("b", "1"), row, ("c", "2")], problem=problem)
    (bad,) = found.dataset.bad_rows
    assert (bad.line, bad.column) == (2, column) and reason in bad.reason and bad.remedy
    assert len(found.examples) == len(found.targets) == 2
    with pytest.raises(StudioError, match=r"1 bad rows, and on_bad_rows is stop\. .*\nline 2"):
        rows_of([("b", "1"), row, ("c", "2")], problem=problem, on_bad_rows="stop")


@pytest.mark.parametrize(
    ("rows", "changes", "words"),
    [
        ([("a", "x"), ("b", "x")], {}, "Every row has the label 'x' in 'label': a classifier needs at least two"),
        ([("a", ["x"]), ("b", "x")], {"problem": "multi_label"}, "Every row has the label 'x'"),
        ([("a", []), ("b", [])], {"problem": "multi_label"}, "No row has a label"),
        ([("a", 3), ("b", 3)], {"problem": "regression"}, "Every row has the number 3"),
        ([("a", f"l{i}") for i in range(500)], {}, r"holds 500 different labels in 500 rows.*at most 256"),
        ([("a", f"l{i};l{i + 1}") for i in range(500)], {}, "Set problem to multi_label"),
        ([("a", None), ("b", None)], {}, "has no good row"),
        ([("a", "x y"), ("b", "z")], {"problem": "regression"}, "has no good row"),
        ([{"text": "a", "stars": 1}], {}, r"'text', 'stars'\) don't match labelled .*\{text: Review"),
    ],
)
def test_what_can_not_be_told_apart_is_said(rows_of, rows, changes, words):
    with pytest.raises(StudioError, match=words):
        rows_of(rows, **changes)


def test_a_file_for_chat_is_not_one_for_a_classifier(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("sentence,label\na,x\nb,y\n")
    with pytest.raises(StudioError, match="don't match"):
        read(file)
    file.write_text("text,label\na,x\nb,y\n")
    assert read(file).format == "text" and read(file, DataSettings(task="classify")).format == "labelled"
    with pytest.raises(StudioError, match="format must be one of auto, labelled"):
        DataSettings("alpaca", task="classify")


def test_any_file_and_chosen_columns(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("id,body,stars\n1,good,5\n2,bad,1\n3,fine,\n")
    found = read_labelled(recipe(file, columns={"text": "body", "label": "stars"}))
    assert found.names == ("1", "5") and found.dataset.columns == {"text": "body", "label": "stars"}
    assert [bad.line for bad in found.dataset.bad_rows] == [4]


def test_long_texts_are_cut_at_their_end():
    tokenizer = toy_tokenizer()
    whole, cut = encode(tokenizer, "one two <|im_end|>", 100)
    assert not cut and 258 not in whole and tokenizer.decode(whole) == "one two <|im_end|>"
    assert encode(tokenizer, "one two", 3) == (whole[:3], True)


# --- the split


def made(rows: list[tuple[str, object]], problem: str = "single_label") -> LabelledRows:
    """Of (text, target)."""
    examples = [Example(i, [{"role": "text", "content": text}]) for i, (text, _) in enumerate(rows)]
    names = tuple("abcdef") if problem != "regression" else ("score",)
    dataset = Dataset(Path("x"), "x", "labelled", {}, Examples.of(examples), [], (), len(rows))
    return LabelledRows(dataset, problem, names, [target for _, target in rows])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.sampled_from(["t", "T ", "u", "v v", "V  v", *"wxyz"]), st.integers(0, 5)), min_size=1),
    share=st.floats(0, 0.5),
    seed=st.integers(0, 5),
)
def test_a_split_leaks_nothing_and_loses_nothing(rows, share, seed):
    found = made(rows)
    train, held_out = found.split(share, seed)
    said = [{" ".join(rows[i][0].casefold().split()) for i in part} for part in (train, held_out)]
    assert not said[0] & said[1] and sorted([*train, *held_out]) == list(range(len(rows))) and train
    assert (train, held_out) == found.split(share, seed)


def test_every_label_has_its_share_of_both_parts():
    found = made([(f"text {i}", int(i % 10 == 0)) for i in range(200)])
    train, held_out = found.split(0.2, 0)
    assert Counter(found.targets[i] for i in held_out) == {0: 36, 1: 4} and found.counts(train)[:2] == (144, 16)
    assert found.split(0.2, 1) != (train, held_out)


def test_numbers_have_all_sizes_in_both_parts():
    found = made([(f"text {i}", float(i)) for i in range(100)], "regression")
    _, held_out = found.split(0.2, 3)
    assert Counter(i // 20 for i in held_out) == dict.fromkeys(range(5), 4)


def test_of_several_labels_the_rarest_counts():
    found = made([(f"text {i}", (0, 1) if i < 10 else (0,)) for i in range(100)], "multi_label")
    _, held_out = found.split(0.2, 0)
    assert found.counts(held_out)[:2] == (20, 2)


def test_what_a_person_should_know_of_the_labels(rows_of, tmp_path):
    rows = [(f"text {i}", "often") for i in range(40)] + [("rare text", "Rare"), ("a", "rare"), ("A ", "often")]
    rows += [("b", "x;y"), ("c", "x;y")]
    found = rows_of(rows)
    warnings = " ".join(found.warnings(*found.split(0.2, 0), recipe(tmp_path / "rows.jsonl", eval_share=0.2)))
    for words in (
        "'Rare', 'rare' differ only in case",
        "If cells such as 'x;y' hold several labels, set problem to multi_label",
        "1 texts occur with different labels, for example on lines 42, 43",
        "Labels with a single text, which can't be evaluated: 'Rare', 'rare'.",
        "Labels without held-out rows: 'x;y'. Raise eval_share",
        "'often' has 41 rows, 'Rare' has 1. Consider class_weights=balanced",
    ):
        assert words in warnings
    large = rows_of([("a", 900), ("b", 1000)], problem="regression")
    assert "range from 900 to 1000" in large.warnings([0, 1], [], recipe(tmp_path / "rows.jsonl"))[0]


def test_joined_labels_are_noticed_without_a_single_one_among_them(rows_of, tmp_path):
    joined = rows_of([("a", "anger, joy"), ("b", "joy, fear"), ("c", "fear, anger"), ("d", "anger, joy")])
    warnings = joined.warnings([0, 1], [2, 3], recipe(tmp_path / "rows.jsonl"))
    assert any("If cells such as 'anger, joy', 'fear, anger', 'joy, fear' hold several" in each for each in warnings)
    places = rows_of([("a", "Paris, France"), ("b", "Lyon, France"), ("c", "Bonn, Germany")])
    assert not any("hold several" in each for each in places.warnings([0, 1], [2], recipe(tmp_path / "rows.jsonl")))


def test_truth_values_have_one_spelling(rows_of):
    assert rows_of([("a", "TRUE"), ("b", "True"), ("c", True), ("d", "FALSE")]).names == ("false", "true")


def test_the_class_id_minus_one_is_no_label(tmp_path):
    features = {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    table = pa.table({"text": ["a", "b", "c"], "label": [1, -1, 0]}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "rows.parquet")
    found = read_labelled(recipe(tmp_path / "rows.parquet"))
    assert found.names == ("neg", "pos") and found.targets == [1, 0]
    assert [(bad.line, bad.reason) for bad in found.dataset.bad_rows] == [(2, "is empty")]


def test_the_report_counts_what_is_trained():
    labels = Labels("single_label", ("ham", "spam"), (3, 4))
    assert labels.report() == {"problem": "single_label", "labels": {"ham": 3, "spam": 4}}


def test_a_preview_marks_the_labels(rows_of, tmp_path):
    rows_of([("a", "x"), ("b", "y"), ("c", "x"), ("c", None)])
    seen = preview(recipe(tmp_path / "rows.jsonl", model="jetmoe/jetmoe-8b", eval_share=0.4))
    assert (
        seen.format == "labelled"
        and [span[:2] for span in seen.examples[0]] == [("a ", False), ("x", True)]
        and seen.bad_count == 1
    )
    assert seen.rows == 3 and seen.train_rows + seen.held_out_rows == 3
    rows_of([("a", "x"), ("b", "y")])
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": "x"}')
    assert "a classifier needs at least two" in preview(recipe(tmp_path / "rows.jsonl")).problem
