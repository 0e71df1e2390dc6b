"""Large data sets are read once, kept on disk, and tokenized only as far as the steps need them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from studio.backend.data import dataset as datasets
from studio.backend.data import stored, uploads
from studio.backend.data.dataset import DataSettings, read, settings_of
from studio.backend.data.examples import Example, Examples, write_examples
from studio.backend.data.features import BATCH, features_of
from studio.backend.data.preview import preview
from studio.backend.data.rows import Limits
from studio.backend.recipe import Recipe
from studio.errors import StudioError
from tests.builders.toy_folder import toy_tokenizer


def examples(count: int) -> list[Example]:
    return [
        Example(i, [{"role": "user", "content": f"Say {i}"}, {"role": "assistant", "content": str(i)}], ("a",))
        for i in range(count)
    ]


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(stored, "LARGE", 0)
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "\n".join(json.dumps({"prompt": f"Say {i}", "answer": str(i), "n": i}) for i in range(1500)) + "\n{"
    )
    return path


def test_examples_are_the_same_in_memory_and_on_disk(tmp_path):
    wanted = examples(2345)
    write_examples(wanted, tmp_path / "x.arrow")
    for found in (Examples.of(wanted), Examples.open(tmp_path / "x.arrow")):
        assert [*found] == wanted and found[-1] == wanted[-1] and found[3:5] == wanted[3:5]
        assert (
            found.where([i in (2, 7) for i in range(2345)]) == [wanted[2], wanted[7]]
            and len(np.unique(found.prompts)) == 2345
        )


def test_a_large_file_is_read_once(file, monkeypatch):
    first = read(file)
    monkeypatch.setattr(datasets, "Rows", None)
    again = read(file)
    assert again.examples == first.examples and len(again.examples) == 1500
    for name in ("path", "fingerprint", "format", "columns", "bad_rows", "notices", "warnings", "total"):
        assert getattr(again, name) == getattr(first, name)
    assert again.duplicates == first.duplicates
    assert len(again.bad_rows) == 1 and again.warnings == ("Unused columns: 'n'.",)


def test_changed_files_and_settings_are_read_again(file):
    read(file)
    assert read(file, DataSettings(columns={"completion": "prompt"})).examples[0].messages[1]["content"] == "Say 0"
    file.write_text(json.dumps({"prompt": "a", "answer": "b"}))
    assert len(read(file).examples) == 1


def test_the_same_content_under_another_name_is_read_again(file):
    assert not read(file).notices
    renamed = file.rename(file.with_name("other.csv"))
    assert read(renamed).notices == ("other.csv was read as jsonl, based on its content.",)


def test_the_oldest_are_deleted_and_nothing_is_left_of_a_failure(file, monkeypatch):
    read(file)
    folder = stored._folder()
    monkeypatch.setattr(stored, "KEPT_BYTES", 0)
    with pytest.raises(StudioError, match="1 bad rows"):
        read(file, DataSettings(on_bad_rows="stop"))
    assert not [*folder.iterdir()]


def test_only_a_file_that_is_named_by_its_path_may_have_any_size(file, monkeypatch):
    monkeypatch.setattr(stored, "LARGE", 1 << 30)
    upload = uploads.find(uploads.keep(file))
    assert settings_of(Recipe(data=str(file))).in_place
    assert not settings_of(Recipe(data=str(upload))).in_place
    assert not settings_of(Recipe(data="hub:a/b")).in_place
    monkeypatch.setattr(datasets, "Limits", lambda: Limits(file_bytes=10))
    assert preview(Recipe(data=str(file))).rows == 1500
    with pytest.raises(StudioError, match="the limit is 10"):
        preview(Recipe(data=str(upload)))


@pytest.mark.parametrize("packing", [True, False])
def test_only_what_the_steps_need_is_tokenized(packing):
    tokenizer, table, chosen = toy_tokenizer(), Examples.of(examples(2000)), np.arange(0, 2000, 2)
    recipe = Recipe(max_length=64, packing=packing)

    def found(seed: int, needed: int):
        return features_of(tokenizer, table, chosen, Recipe(max_length=64, packing=packing, seed=seed), needed)

    some = found(0, 5)
    assert len(some.rendered) == BATCH and len(some.rows) >= 5
    assert some.rows == found(0, 5).rows
    assert [each.token_ids for each in some.rendered] != [each.token_ids for each in found(1, 5).rendered]
    every = features_of(tokenizer, table, chosen, recipe)
    assert len(every.rendered) == 1000 and every.rendered == found(3, 10**6).rendered
