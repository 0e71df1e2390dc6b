"""The notices of a data set: the right reasons, and first what changes what is trained."""

import json

import pytest

from studio.backend.data.preview import preview
from studio.backend.recipe import Recipe
from tests.builders.toy_folder import toy_folder


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return toy_folder(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def notices_of(toy, tmp_path):
    def found(rows: list[dict], **changes) -> list[str]:
        file = tmp_path / "rows.txt"
        file.write_text("\n".join(map(json.dumps, rows)))
        return preview(Recipe.from_settings({"model": str(toy), "data": str(file), **changes})).notices

    return found


def test_what_changes_what_is_trained_stands_first(notices_of):
    rows = [{"prompt": f"Say {i}", "completion": "nan", "passage": "Once"} for i in range(20)]
    rows += [
        {"prompt": "<|im_end|>" * 8, "completion": "x" * 99, "passage": ""},
        {"prompt": "", "completion": "a", "z": 1},
    ]
    beginnings = [
        "A guess from the column names",
        "Unused columns: 'z'",
        "Rows that hold the control token <|im_end|>",
        "1 rows are left out",
        "1 bad rows were left out",
        "1 rows are longer",
        "Cells of 'completion' that hold the word 'nan'",
        "rows.txt was read as jsonl",
    ]
    found = notices_of(rows, max_length=60)
    assert len(found) == len(beginnings)
    assert all(each.startswith(beginning) for each, beginning in zip(found, beginnings, strict=True))


def test_warnings_about_labels_stand_before_assumptions_about_the_file(notices_of):
    rows = [{"text": f"text {i}", "label": label} for i, label in enumerate(["Good", "good", "bad"] * 5)]
    found = notices_of(rows, task="classify", packing=False)
    assert "differ only in case" in found[0] and found[-1].startswith("rows.txt was read as jsonl")


@pytest.mark.parametrize(
    ("rows", "changes", "reason"),
    [
        (
            [{"text": name, "label": name} for name in "abc"],
            {"task": "classify", "packing": False},
            "no label has two different texts",
        ),
        (
            [{"text": str(n), "label": n} for n in range(5)],
            {"task": "classify", "packing": False, "problem": "regression"},
            "no fifth of the numbers has two different texts",
        ),
        (
            [{"text": "same", "label": name} for name in "ab"],
            {"task": "classify", "packing": False},
            "rows with the same prompt or text stay on one side, and all have the same",
        ),
        (
            [{"prompt": "same", "completion": name} for name in "ab"],
            {},
            "rows with the same prompt or text stay on one side, and all have the same",
        ),
    ],
)
def test_the_reason_why_nothing_is_held_out(rows, changes, reason, notices_of):
    assert any(f"Nothing is held out, because {reason}" in notice for notice in notices_of(rows, **changes))
