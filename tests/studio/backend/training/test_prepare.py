"""The rows of a classifier's run: only those are tokenized that its steps and its first head read."""

import pytest

from studio.backend.recipe import Recipe
from studio.backend.training import prepare
from studio.backend.training.prepare import prepare_data
from tests.builders.toy_folder import toy_tokenizer


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "HEAD_ROWS", 8)
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(100)))

    def of(**changes):
        settings = {"task": "classify", "data": str(rows), "packing": False, "eval_share": 0.2, "batch_size": 4}
        return prepare_data(Recipe.from_settings(settings | changes), toy_tokenizer())

    return of


def test_a_classifier_reads_as_many_rows_as_its_steps_need(prepared):
    data = prepared(max_steps=5)
    assert (len(data.train), len(data.held_out)) == (20, 20)
    assert sum(data.summary.counts) == 40 and data.labels.rows == sum(data.labels.counts) == 20
    assert data.warnings[-1] == "5 steps read 20 of the 80 training rows. Tokens are counted in these."
    every = prepared(max_steps=0)
    texts = dict(zip(every.learned.texts, every.train, strict=True))
    assert [texts[text] for text in data.learned.texts] == data.train
    assert data.learned.texts == prepared(max_steps=5).learned.texts != prepared(max_steps=5, seed=1).learned.texts
    assert data.measured == every.measured


def test_the_first_head_and_a_probe_read_more(prepared):
    assert len(prepared(max_steps=1).train) == 8
    assert len(prepared(max_steps=20).train) == 80
    probe = prepared(max_steps=0, method="probe")
    assert len(probe.train) == 80 and "steps read" not in "".join(probe.warnings)
