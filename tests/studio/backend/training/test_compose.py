"""Specialists trained by runs, joined into an adapter that the chat offers."""

import json
from pathlib import Path

import pytest

from studio.backend.adapters.find import choices
from studio.backend.training.compose import compose
from studio.errors import StudioError
from tests.builders.toy_folder import toy_folder
from tests.builders.training import started, training_settings, values

WORDS = ["aa bb cc dd", "xx yy zz ww"]
SPECIALIST = {"preset": "moa+experts", "max_steps": 8, "sample_tokens": 2, "r": 4, "eval_share": 0.2}


def rows(file: Path, words: str) -> str:
    """Thirty questions and answers in a few words of its own."""
    pieces = words.split()
    lines = [
        {"prompt": " ".join(pieces[: 1 + i % 3]) + f" {i}", "completion": " ".join(pieces[i % 4 :] + pieces)}
        for i in range(30)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(file)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("specialists")
    return {
        **training_settings(folder), **SPECIALIST,
        "model": str(toy_folder(folder / "tied", expert_groups=[0, 1, 0, 1])),
    }  # fmt: skip


def test_two_specialists_become_one_adapter_that_the_chat_offers(settings, tmp_path):
    runs = [
        started(settings, data=rows(tmp_path / f"{number}.jsonl", words), specialist=f"replica {number}")
        for number, words in enumerate(WORDS)
    ]
    (warning,) = (each for each in values(runs[1], "audit")[0]["warnings"] if "Every token" in each)
    assert "routed to the experts 1, 3, and only these are trained" in warning
    made = compose([run.id for run in runs], "both")
    assert ("both", made.adapter.id) in [(each.title, each.id) for each in choices(settings["model"])]
    for number, row in enumerate(made.rows):
        assert row.specialist < row.base and len(row.shares) == 2
        assert abs(sum(row.shares) - 1) < 1e-6 and row.shares[number] > 0.6
        assert row.kept > 0.5


def test_what_cannot_be_composed_is_said(settings, tmp_path):
    plain = started(settings, specialist="", max_steps=2, save_steps=2)
    with pytest.raises(StudioError, match="is no specialist: it was trained without the setting specialist"):
        compose([plain.id], "none")
    with pytest.raises(StudioError, match="Name 1 to 16 runs; these are 0"):
        compose([], "none")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"specialist": "replica 2"}, r"There is no replica 2: they go from 0 to 1\. \(specialist: replica 2\)"),
        ({"specialist": "experts 0"}, "left with 1 experts, and it selects 2"),
        ({"specialist": "experts 0,9"}, "There is no expert 9"),
        ({"specialist": "replica 1", "preset": "all"}, r"set task to chat, and preset to moa\+experts"),
        ({"specialist": "the first"}, "a replica such as replica 1, or experts such as experts 3,17,40"),
    ],
)
def test_a_specialist_that_cannot_be_is_refused_before_the_run(settings, changes, said):
    with pytest.raises(StudioError, match=said):
        started(settings, **changes)
