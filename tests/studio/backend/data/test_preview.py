"""What a person sees of a data set before training, of files good and bad."""

import json
from dataclasses import replace

import pytest

from studio.backend.data import preview as previews
from studio.backend.data.preview import fields_of, preview
from studio.backend.recipe import Recipe
from studio.errors import StudioError
from tests.builders.toy_folder import toy_folder


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return toy_folder(tmp_path_factory.mktemp("toy"))


def test_rows_with_their_trained_text_counts_and_bad_rows(toy, tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("Frage,Antwort,note\n1+1?,2,x\n2+2?,4,\n3+3?,,\n1+1?,2,x\n" + "long?," + "x" * 900 + ",\n")
    columns = {"prompt": "Frage", "completion": "Antwort"}
    seen = preview(Recipe(str(toy), data=str(rows), columns=columns, max_length=100, eval_share=0.25))
    assert (seen.file, seen.names, seen.format) == ("rows.csv", ["Frage", "Antwort", "note"], "prompt_completion")
    assert seen.columns == columns and not seen.problem
    assert (seen.rows, seen.train_rows + seen.held_out_rows, seen.duplicates, seen.bad_count) == (4, 4, 1, 1)
    assert seen.bad_rows[0].line == 4 and seen.bad_rows[0].column == "Antwort"
    assert seen.examples[0] == [
        ("<|im_start|>", False, True),
        ("user\n1+1?", False, False),
        ("<|im_end|>", False, True),
        ("\n", False, False),
        ("<|im_start|>", False, True),
        ("assistant\n", False, False),
        ("2", True, False),
        ("<|im_end|>", True, True),
        ("\n", False, False),
    ]
    assert seen.tokens.cut == 1 and sum(seen.tokens.counts) == 4


def test_labelled_texts_are_shown_and_counted_in_their_prompt(toy, tmp_path):
    rows = tmp_path / "rows.jsonl"
    written = [{"text": f"{name} {i}", "label": name} for i in range(4) for name in ("tea", "{text}")]
    rows.write_text("\n".join(map(json.dumps, written)))
    recipe = Recipe(str(toy), data=str(rows), task="classify", packing=False, prompt="Kind of {text}?", max_length=64)
    seen = preview(recipe)
    assert seen.examples[:2] == [
        [("Kind of tea 0? ", False, False), ("tea", True, False)],
        [("Kind of {text} 0? ", False, False), ("{text}", True, False)],
    ]
    plain = preview(replace(recipe, prompt="{text}"))
    assert seen.tokens.tokens == plain.tokens.tokens + 8 * len("Kind of ?"), "a token of the toy is a character"


def test_a_file_whose_columns_say_nothing_names_them(toy, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"a": "x", "b": "y"}))
    seen = preview(Recipe(str(toy), data=str(rows)))
    assert seen.notices[0] == previews.GUESSED and seen.columns == {"prompt": "a", "completion": "b"}
    assert seen.raw == [{"a": "x", "b": "y"}]
    rows.write_text(json.dumps({"a": 1, "b": 2}))
    seen = preview(Recipe(str(toy), data=str(rows)))
    assert "don't tell what is trained" in seen.problem and seen.names == ["a", "b"] and not seen.examples


def test_rows_that_are_cut_before_their_answer_are_said(toy, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"prompt": "x" * n, "completion": "y"}) for n in (5, 200)))
    assert "1 rows are left out" in preview(Recipe(str(toy), data=str(rows), max_length=100)).notices[0]
    seen = preview(Recipe(str(toy), data=str(rows), max_length=16))
    assert seen.problem == "Every row is cut before its answer begins: raise max_length, which is 16 tokens."


def test_what_is_no_file_of_rows_is_said(toy, tmp_path):
    (tmp_path / "empty.csv").write_text("")
    for data in ("missing.csv", str(tmp_path / "empty.csv")):
        with pytest.raises(StudioError):
            preview(Recipe(str(toy), data=data))


def test_without_the_model_the_texts_are_shown_and_why_no_tokens(monkeypatch):
    monkeypatch.setattr(previews.catalog, "ready", lambda model: False)
    seen = preview(Recipe(data="identity"))
    assert seen.tokens is None and "Token counts need the model" in seen.notices[-1]
    assert seen.examples[0][0][:2] == ("hi", False) and seen.examples[0][1][1]


def test_counts_of_a_large_file_are_estimates(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(previews, "FIRST", 500)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"prompt": f"Say {i}", "completion": f"{i}"}) for i in range(4000)))
    seen = preview(Recipe(str(toy), data=str(rows)))
    assert sum(seen.tokens.counts) == 500 and seen.is_part
    assert 3500 < seen.rows < 4500 and seen.held_out_rows == pytest.approx(seen.rows / 10, rel=0.01)
    monkeypatch.setattr(previews, "FIRST", 4000)
    assert preview(Recipe(str(toy), data=str(rows))).rows == 4000


def test_the_fields_of_a_format():
    assert fields_of("prompt_completion") == {
        "prompt": True, "completion": True, "system": False, "history": False, "context": False,
    }  # fmt: skip
    assert fields_of("auto") == {}
