"""What a browser keeps of the adapter that is picked, and what the picker offers."""

import pytest

from studio.backend.recipe import Recipe
from studio.backend.runs.store import RunStore
from studio.errors import StudioError
from studio.ui.common.picked_adapter import Picked, fitting, keep_listed, offered, read_picked
from tests.builders.adapters import make_adapter
from tests.builders.toy_folder import toy_folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    base = toy_folder(tmp_path / "toy")
    run = RunStore().create(Recipe.from_settings({"model": str(base)}), "Pirate")
    make_adapter(base, run.adapter, seed=1)
    return RunStore().finish(run.id, "done")


@pytest.mark.parametrize("picked", [Picked(), Picked("3f2a"), Picked("3f2a", True)])
def test_what_is_kept_comes_back(picked):
    assert read_picked(picked.kept()) == picked


@pytest.mark.parametrize(
    "stored", [None, "", "x", 7, [], {}, {"adapter": None}, {"adapter": 7, "beside": True}, {"beside": True}]
)
def test_anything_else_is_no_adapter_and_nothing_beside_it(stored):
    assert read_picked(stored) == Picked()


def test_strange_values_do_no_harm():
    assert read_picked({"adapter": "a" * 10_000, "beside": "yes"}) == Picked("a" * 200, False)


def test_adapters_of_the_model_are_offered_after_the_base(run):
    assert offered(run.model) == [("No adapter (base model)", ""), ("Pirate", run.id)]
    assert offered(None) == [("No adapter (base model)", "")]
    assert len(offered("starter")) == 1


def test_only_what_is_offered_fits(run):
    assert fitting("", run.model) is None
    assert fitting(run.id, run.model) == (run.id, "Pirate")
    for adapter, model in [(run.id, "starter"), (run.id[:8], run.model), ("../../etc", run.model), (run.id, None)]:
        with pytest.raises(StudioError, match="does not fit"):
            fitting(adapter, model)


def test_an_open_list_never_gets_shorter():
    listed = [("None", ""), ("One", "1"), ("Two", "2")]
    assert keep_listed(listed[:2], listed) == [*listed[:2], ("Two – no longer available", "2")]
    again = keep_listed(listed[:2], keep_listed(listed[:2], listed))
    assert again[-1] == ("Two – no longer available", "2")
    assert keep_listed(listed, listed[:2]) == listed
