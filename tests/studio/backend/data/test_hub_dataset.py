"""Data sets of the Hub, read from a hub on this machine through `datasets` itself."""

from __future__ import annotations

import json
from collections.abc import Iterator

import datasets
import pytest
from huggingface_hub import constants

from studio.backend.data import hub_dataset
from studio.backend.data.dataset import read
from studio.backend.data.hub_dataset import Reference, fetch, parse
from studio.errors import StudioError
from tests.builders.fake_datasets import COMMIT, FakeDatasets, serving, use

ROWS = [{"prompt": f"Say {i}", "completion": f"{i} ü"} for i in range(40)]
HUB = "hub:me/rows"


@pytest.fixture(scope="module")
def served() -> Iterator[FakeDatasets]:
    with serving(FakeDatasets()) as hub:
        yield hub


@pytest.fixture
def hub(served: FakeDatasets, tmp_path, monkeypatch) -> FakeDatasets:
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    use(served, monkeypatch, tmp_path)
    served.add("me/rows", {"train": ROWS, "test": ROWS[:5]})
    return served


def prompts(text: str) -> list[str]:
    return [json.loads(line)["prompt"] for line in fetch(text).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hub:me/rows", Reference("me/rows", None, None, "train", "")),
        ("hub:me/rows/small@v1.0:test[:10]", Reference("me/rows", "small", "v1.0", "test", "[:10]")),
        ("hub:me/rows@refs/convert/parquet", Reference("me/rows", None, "refs/convert/parquet", "train", "")),
        (" hub:me/rows:test[10%:20%] ", Reference("me/rows", None, None, "test", "[10%:20%]")),
    ],
)
def test_references(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize("text", ["hub:", "hub:rows", "hub:me/rows:train[1]", "hub:me/../..", "hub:me/rows:train[:x]"])
def test_what_is_no_reference(hub, text):
    with pytest.raises(StudioError, match=r"hub:OWNER/NAME|no public data set"):
        fetch(text)


@pytest.mark.parametrize(
    ("split", "expected"),
    [("", range(40)), (":test", range(5)), (":train[:3]", range(3)), (":train[38:]", range(38, 40)),
     (":train[5:7]", range(5, 7)), (":train[25%:50%]", range(10, 20))],
)  # fmt: skip
def test_splits_and_slices(hub, split, expected):
    assert prompts(HUB + split) == [f"Say {i}" for i in expected]


def test_it_is_read_as_any_other_file(hub):
    dataset = read(f"{HUB}:train[:10]")
    assert dataset.path.name == "rows-train_to_10.jsonl" and len(dataset.examples) == 10
    assert dataset.examples[3].messages[1]["content"] == "3 ü"


def test_a_commit_is_fetched_once_and_a_new_one_anew(hub):
    first = fetch(HUB)
    hub.requests.clear()
    assert fetch(HUB) == first and not hub.requests
    hub.add("me/rows", {"train": ROWS[:2]}, commit="b" * 40)
    hub_dataset._ask_hub.cache_clear()
    assert len(prompts(HUB)) == 2 and prompts(f"{HUB}@{'b' * 40}") == ["Say 0", "Say 1"]
    assert first.parent.name == COMMIT and first.is_file()


def test_without_a_network_the_last_copy_of_that_revision_is_used(hub, monkeypatch, caplog):
    first = fetch(HUB)
    hub_dataset._ask_hub.cache_clear()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert fetch(HUB) == first and "can't be reached" in caplog.text
    assert fetch(f"{HUB}@{COMMIT}") == first
    for other in ("hub:me/others", f"{HUB}@v2", f"{HUB}@{'b' * 40}"):
        with pytest.raises(StudioError, match="can't be reached for me/"):
            fetch(other)


def test_a_commit_that_is_here_is_not_asked_for(hub):
    first = fetch(HUB)
    hub_dataset._ask_hub.cache_clear()
    hub.requests.clear()
    assert fetch(f"{HUB}@{COMMIT}") == first and not hub.requests


def test_bytes_are_counted_not_characters(hub, monkeypatch):
    monkeypatch.setenv("STUDIO_DEMO", "1")
    hub.add("me/rows", {"train": [{"text": "é" * 10_000}] * 400}, commit="d" * 40)
    with pytest.raises(StudioError, match="more than 5 MiB of rows"):
        fetch(HUB)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("hub:me/none", "no public data set me/none"),
        ("hub:me/rows@v9", "no revision 'v9'"),
        ("hub:me/rows:validation", "Bad split: validation"),
        ("hub:me/rows/other", "'other' not found"),
        ("hub:me/rows:train[40:]", "no rows in train"),
    ],
)
def test_what_is_not_there_is_named(hub, text, problem, tmp_path):
    with pytest.raises(StudioError, match=problem):
        fetch(text)
    assert not list((tmp_path / "home").rglob("*.jsonl")) and not list((tmp_path / "home").rglob("*.part"))


def test_a_gated_data_set_is_refused(hub):
    hub.gated.add("me/rows")
    with pytest.raises(StudioError, match="is gated"):
        fetch(HUB)


def test_no_token_is_sent(hub):
    fetch(f"{HUB}:train[50%:]")
    fetch(HUB)
    assert hub.requests and {authorization for _, authorization in hub.requests} == {None}


def test_class_names_and_columns_that_are_no_text():
    label, picture = datasets.ClassLabel(names=["ham", "spam"]), datasets.Image()
    features = datasets.Features({"text": datasets.Value("string"), "label": label, "picture": picture})
    readable = hub_dataset._readable(features)
    assert readable({"text": "a", "label": 1, "picture": b"x"}) == {"text": "a", "label": "spam"}
    assert readable({"text": "a", "label": -1, "picture": None})["label"] is None


def test_the_oldest_make_room(hub, monkeypatch):
    first = fetch(f"{HUB}:train[:3]")
    monkeypatch.setattr(hub_dataset, "KEPT_BYTES", 0)
    second = fetch(f"{HUB}:train[:4]")
    assert second.is_file() and not first.is_file()


def test_a_demo_takes_no_percents(hub, monkeypatch):
    monkeypatch.setenv("STUDIO_DEMO", "1")
    with pytest.raises(StudioError, match="downloads the whole data set"):
        fetch(f"{HUB}:train[:1%]")


def test_a_demo_takes_small_ones(hub, monkeypatch):
    monkeypatch.setenv("STUDIO_DEMO", "1")
    hub.add("me/rows", {"train": [{"text": "x" * 10_000}] * 700}, commit="c" * 40)  # sizes are kept by commit
    hub_dataset._ask_hub.cache_clear()
    with pytest.raises(StudioError, match=r"more than 5 MiB of rows\. Take a slice, for example hub:me/rows:train"):
        fetch(HUB)
    assert fetch(f"{HUB}:train[:3]").is_file()
