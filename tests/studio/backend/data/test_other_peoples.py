"""Files as other programs and people write them: each is read as it was meant, on the page and on the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from jetmoe.losses import IGNORED
from studio.backend.data.dataset import read, settings_of
from studio.backend.data.labelled import read_labelled, shown
from studio.backend.data.packing import Collator
from studio.backend.data.preview import GUESSED, preview
from studio.backend.recipe import Recipe
from studio.backend.training.prepare import prepare_data
from studio.errors import StudioError
from tests.builders.toy_folder import toy_folder

FOLDER = Path(__file__).parents[3] / "data" / "other_peoples"
CASES = {
    case["file"]: case for case in map(json.loads, (FOLDER / "expected.jsonl").read_text("utf-8").split("\n")[:-1])
}
READ = [name for name, case in CASES.items() if "refused" not in case]


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    return toy_folder(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def tokenizer(toy):
    return AutoTokenizer.from_pretrained(toy)


@pytest.fixture
def recipe(toy):
    def of(case: dict[str, Any], **changes) -> Recipe:
        settings = {"model": str(toy), "data": str(FOLDER / case["file"]), **case.get("settings", {}), **changes}
        return Recipe.from_settings(settings)

    return of


def test_every_file_has_an_expected_reading():
    files = {path.name for path in FOLDER.iterdir()} - {"expected.jsonl", "README.md"}
    assert files == CASES.keys() and len(files) >= 60


@pytest.mark.parametrize("name", READ)
def test_it_is_read_as_it_was_meant(name, recipe):
    case = CASES[name]
    chosen = recipe(case)
    dataset = read(chosen.data, settings_of(chosen))
    if "labels" in case:
        rows = read_labelled(chosen)
        dataset = rows.dataset
        assert [shown(rows.labels, target) for target in rows.targets] == case["labels"]
    if "texts" in case:
        assert [each.messages[0]["content"] for each in dataset.examples] == case["texts"]
    else:
        found = [[[turn["role"], turn["content"]] for turn in each.messages] for each in dataset.examples]
        assert found == case["messages"]
        assert untrained(dataset.examples) == case.get("untrained", [])
    bad = [(each.line, each.column, each.reason) for each in dataset.bad_rows]
    assert len(bad) == len(case.get("bad", []))
    for (line, column, reason), expected in zip(bad, case.get("bad", []), strict=True):
        assert [line, column] == expected[:2] and expected[2] in reason


def untrained(examples) -> list[list[int]]:
    turns = [(i, k, turn) for i, each in enumerate(examples) for k, turn in enumerate(each.messages)]
    return [[i, k] for i, k, turn in turns if turn.get("train") is False]


@pytest.mark.parametrize("name", READ)
def test_page_and_command_line_say_the_same(name, recipe, tokenizer):
    case = CASES[name]
    seen, data = preview(recipe(case)), prepare_data(recipe(case), tokenizer)
    for sentence in case.get("notices", []):
        assert any(sentence in notice for notice in seen.notices) and any(sentence in each for each in data.warnings)
    assert seen.notices == data.warnings and not seen.problem
    assert seen.rows == len(data.dataset.examples) and seen.bad_rows == data.dataset.bad_rows
    assert seen.tokens == data.summary
    if "labels" not in case:
        batch = Collator(pad_id=0)([*data.train, *data.held_out])
        assert int((batch["labels"] != IGNORED).sum()) == seen.tokens.trained_tokens
        assert int(batch["token_mask"].sum()) == seen.tokens.tokens


@pytest.mark.parametrize("name", sorted(CASES.keys() - READ))
def test_it_is_refused_with_what_it_looks_like(name, recipe, tokenizer):
    case = CASES[name]
    seen = preview(recipe(case))
    assert case["refused"] in seen.problem or seen.notices[0] == GUESSED or case["refused"] in seen.notices[0]
    assert seen.raw
    with pytest.raises(StudioError, match=re.escape(case["refused"])):
        prepare_data(recipe(case), tokenizer)
